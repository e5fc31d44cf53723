"The journal among several processes, and in the program itself"
import os, subprocess, sys
import pytest
from steerlens.journal import entries, write_entry

MANY = "from steerlens.journal import write_entry\nfor i in range(8): write_entry(f'{who} {i}')"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv('STEERLENS_ROOT', str(tmp_path))
    return tmp_path


def python(code, **kw): return subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, **kw)


def test_nobodys_entry_is_lost(project):
    writers = [python(f'who = {who!r}\n{MANY}') for who in ('a', 'b', 'c')]
    for w in writers:
        _,said = w.communicate(timeout=60)
        assert not w.returncode, said
    assert sorted(e.text for e in entries()) == sorted(f'{who} {i}' for who in 'abc' for i in range(8))


def test_a_kill_leaves_the_file_as_it_was(project):
    write_entry('Before.')
    dies = python("import os\nfrom pathlib import Path\nfrom steerlens import journal\n"
                  "Path.write_bytes = lambda *_: os._exit(9)\njournal.write_entry('Never.')")
    dies.communicate(timeout=60)
    assert dies.returncode==9
    write_entry('After.') # the lock died with its holder
    assert [e.text for e in entries()] == ['Before.', 'After.']


def test_the_program_says_it_in_one_line(project):
    says = [sys.executable, '-c', 'from steerlens.cli import main; main()', 'journal']
    (project/'reports/2_sae').mkdir(parents=True) # a phase that there is, without this run
    done = subprocess.run([*says, 'See 2_sae/nano_vla.'], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, '', 1), done.stderr
    assert "'2_sae/nano_vla': no manifest there" in done.stderr
    assert not (project/'reports/journal').exists()
