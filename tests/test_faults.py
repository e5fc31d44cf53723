"Killed at any moment: the old state or the new, and the next run goes on from there"
import json, os, shutil, signal, subprocess, sys, time
import pytest
from steerlens.core import read_json
from conftest import BIN, ROOT, sh

WRITER = """
import sys
from steerlens.core import write_json
n = 0
while True:
    n += 1
    write_json(sys.argv[1], dict(n=[n]*20000))
"""


def test_a_killed_writer_tears_nothing(tmp_path):
    path = tmp_path/'metrics.json'
    for wait in (.3, .37, .45, .58):
        p = subprocess.Popen([sys.executable, '-c', WRITER, str(path)])
        while not path.exists(): time.sleep(.01)
        time.sleep(wait)
        p.kill()
        p.wait()
        assert len(set(read_json(path)['n']))==1


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='a full disk is played by /dev/full, which is not here')
def test_a_full_disk_is_one_line(tmp_path):
    from steerlens.core import SteerlensError, atomic
    (tmp_path/'metrics.json').write_text('{}')
    with pytest.raises(SteerlensError, match='metrics.json: could not be written'):
        with atomic(tmp_path/'metrics.json') as f:
            f.symlink_to('/dev/full')
            f.write_text('x')
    assert [p.name for p in tmp_path.iterdir()]==['metrics.json']


PARAMETERS = "subject:str = 'nano_vla'  # the model under study\nout:str = '.'  # where to write"
WORK = """
import time
from pathlib import Path
from steerlens.core import write_json
print('PHASE began', flush=True)
log = Path(out)/'PHASE.log'
log.write_text(log.read_text()+'began ' if log.exists() else 'began ')
time.sleep(SECONDS)
log.write_text(log.read_text()+'ended ')
write_json(Path(out)/'reports'/'PHASE'/subject/'metrics.json', dict(ok=True))
"""


def code_cell(name, source, *tags):
    return dict(cell_type='code', id=name, source=source, metadata=dict(tags=tags), outputs=[], execution_count=None)


@pytest.fixture
def toy(tmp_path):
    "A project with this one's Snakefile and two phases that only wait"
    for d in ('sae_notebooks', 'params/subjects', 'nbs'): (tmp_path/d).mkdir(parents=True)
    (tmp_path/'params/subjects/nano_vla.yaml').touch()
    for f in ('Snakefile', 'settings.ini', 'profiles/local/config.yaml'):
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, tmp_path/f)
    for phase,seconds in (('1_a', 0), ('2_b', 4)):
        work = WORK.replace('PHASE', phase).replace('SECONDS', str(seconds))
        cells = [code_cell('c0', PARAMETERS, 'parameters'), code_cell('c1', work)]
        kernel = dict(name='python3', display_name='python3', language='python')
        nb = dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel), cells=cells)
        (tmp_path/f'sae_notebooks/{phase}.ipynb').write_text(json.dumps(nb))
    return tmp_path


def makes_line():
    "The command that `make run` gives to Snakemake"
    line = next(l for l in (ROOT/'Makefile').read_text().splitlines() if l.startswith('SNAKEMAKE'))
    return line.split('= ')[1].replace('"$(BIN)"/', '')


@pytest.mark.skipif(not shutil.which('flock'), reason='no flock on this system')
@pytest.mark.parametrize('whole_tree', [False, True], ids=['snakemake alone', 'the whole tree'])
def test_a_killed_run_goes_on(toy, whole_tree):
    goal = 'reports/2_b/nano_vla/metrics.json'
    command = f'flock .run.lock {makes_line()} {goal}' # as the Makefile's `run` does
    env = os.environ | dict(PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}', PYTHONUNBUFFERED='1')
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    p = subprocess.Popen(command, shell=True, cwd=toy, env=env, start_new_session=True, **quiet)
    try:
        while not (toy/'2_b.log').exists():
            assert p.poll() is None, 'ended before it could be killed'
            time.sleep(.05)
        if whole_tree: os.killpg(p.pid, signal.SIGKILL)
        else:
            find = ['pgrep', '-g', str(p.pid), '-f', 'snakemake --nolock']
            children = subprocess.run(find, capture_output=True, text=True).stdout.split()
            for c in children: os.kill(int(c), signal.SIGKILL)
    finally: p.wait()
    assert not (toy/goal).exists()
    said = sh('bash', '-c', command, cwd=toy)
    assert said.rc==0, said.out+said.err
    assert read_json(toy/goal)==dict(ok=True)
    assert (toy/'1_a.log').read_text()=='began ended ', 'a finished phase was done again'
    twice = 'began ended began ended ', 'began began ended '
    assert (toy/'2_b.log').read_text() in twice, 'two runs of one phase overlapped'
    assert not list(toy.rglob('.tmp-*'))
