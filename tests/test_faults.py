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


PARAMETERS = """
subject:str = 'nano_vla'  # the model under study
out:str = '.'  # where to write
k:int = 3  # a number
"""
WORK = """
import time
from pathlib import Path
from steerlens.core import write_json
from steerlens.params import check
check('PHASE', globals())
print('PHASE began', flush=True)
log = Path(out)/'PHASE.log'
log.write_text(log.read_text()+'began ' if log.exists() else 'began ')
time.sleep(SECONDS)
log.write_text(log.read_text()+'ended ')
write_json(Path(out)/'reports'/'PHASE'/subject/'metrics.json', dict(ok=True))
"""


def code_cell(name, source, *tags):
    return dict(cell_type='code', id=name, source=source, metadata=dict(tags=tags), outputs=[], execution_count=None)


def add_phase(project, phase, work, kernel='python3'):
    cells = [code_cell('c0', PARAMETERS.strip(), 'parameters'), code_cell('c1', work)]
    kernel = dict(name=kernel, display_name=kernel, language='python')
    nb = dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel), cells=cells)
    (project/f'sae_notebooks/{phase}.ipynb').write_text(json.dumps(nb))


@pytest.fixture
def toy(tmp_path):
    "A project with this one's Snakefile and two phases that only wait"
    for d in ('sae_notebooks', 'params/subjects', 'nbs'): (tmp_path/d).mkdir(parents=True)
    for subject in ('nano_vla', 'nano_lm'): (tmp_path/f'params/subjects/{subject}.yaml').touch()
    for f in ('Snakefile', 'settings.ini', 'profiles/local/config.yaml'):
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, tmp_path/f)
    for phase,seconds in (('1_a', 0), ('2_b', 4)):
        add_phase(tmp_path, phase, WORK.replace('PHASE', phase).replace('SECONDS', str(seconds)))
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


def children(pid): return subprocess.run(['pgrep', '-P', str(pid)], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize('whole_tree', [False, True], ids=['the command alone', 'the terminal'])
def test_ctrl_c_says_what_is_kept(toy, whole_tree):
    env = os.environ | dict(PYTHONUNBUFFERED='1')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p = subprocess.Popen([BIN/'steerlens', 'run', '2', 'nano_vla'], cwd=toy, env=env, start_new_session=True, **pipes)
    assert p.stdout.readline()=='2_b began\n'
    ours = children(p.pid)
    assert ours
    (os.killpg if whole_tree else os.kill)(p.pid, signal.SIGINT)
    out,err = p.communicate(timeout=60)
    assert p.returncode==1 and err.count('\n')==1, out+err
    assert 'stopped by hand; finished shards and checkpoints are kept; the same command goes on' in err
    assert not [pid for pid in ours if os.path.exists(f'/proc/{pid}')], 'its kernel works on'
    assert not list(toy.rglob('.tmp-*'))


DEATHS = {'the kernel died': 'import os; os._exit(3)', 'ValueError: last': "raise ValueError('first\\nlast')",
          'SyntaxError: invalid syntax': 'x = = 1'}


@pytest.mark.parametrize('says', DEATHS)
def test_a_failed_notebook_is_one_line(toy, says):
    add_phase(toy, '3_fails', DEATHS[says])
    said = sh('steerlens', 'run', '3', 'nano_vla', cwd=toy)
    assert said.rc==1 and says in said.err.splitlines()[-1] and 'Traceback' not in said.err, said.err


def test_the_kernel_is_this_python(toy):
    "Whatever the notebook's metadata says, and whatever is called python3 on JUPYTER_PATH"
    spec = toy/'jupyter/kernels/python3'
    spec.mkdir(parents=True)
    other = ['/bin/false', '{connection_file}']
    (spec/'kernel.json').write_text(json.dumps(dict(argv=other, display_name='python3', language='python')))
    for kernel in ('python3', 'ir'):
        add_phase(toy, '3_where', 'import sys; print(sys.executable)', kernel)
        said = sh('steerlens', 'run', '3', 'nano_vla', cwd=toy, JUPYTER_PATH=toy/'jupyter')
        assert said.rc==0 and os.path.samefile(said.out.splitlines()[0], sys.executable), said.out+said.err


@pytest.mark.parametrize('out', ['run_{seed}', 'a b', "it's"])
def test_any_folder_will_do(toy, out):
    project = toy.rename(toy.with_name(f'{toy.name} pro{{ject}}'))
    said = sh('steerlens', 'run', '1', 'nano_vla', f'out={out}', cwd=project)
    assert said.rc==0, said.err
    assert (project/out/'reports/1_a/nano_vla.ipynb').exists()


def test_a_run_by_hand_is_not_the_published_one(toy):
    goal = 'reports/1_a/nano_vla/metrics.json'
    def begun(): return (toy/'1_a.log').read_text().count('began')
    def make(): return sh('bash', '-c', f'{makes_line()} {goal}', cwd=toy)
    assert sh('steerlens', 'run', '1', 'nano_vla', cwd=toy).rc==0
    assert make().rc==0 and begun()==1, 'the same parameters were run again'
    assert sh('steerlens', 'run', '1', 'nano_vla', 'k=4', cwd=toy).rc==0
    assert make().rc==0 and begun()==3, 'other parameters were taken for the published ones'
    by_hand = WORK.replace('PHASE', '1_a').replace('SECONDS', '0') # in JupyterLab, without papermill
    for runs in (5, 7): # twice the same
        ran = sh(sys.executable, '-c', f'{PARAMETERS}\nk = 5\n{by_hand}', cwd=toy)
        assert ran.rc==0, ran.err
        assert make().rc==0 and begun()==runs
    assert read_json(toy/'reports/1_a/nano_vla/params.json')['k']==3


def test_mistakes_stop_snakemake_in_one_line(toy):
    (toy/'params/phases').mkdir()
    (toy/'params/phases/1_a.yaml').write_text('kk: 3')
    for config,says in (('out=a{b}', 'braces'), ('out=x', "no parameter 'kk'; did you mean k?")):
        said = sh('bash', '-c', f"{makes_line()} --config '{config}'", cwd=toy)
        assert said.rc!=0 and says in said.err.splitlines()[-1] and 'Traceback' not in said.err, said.err


ELSEWHERE = """
from pathlib import Path
from steerlens.core import check_inputs, manifest, root
from steerlens.params import resolve
Path('in.txt').write_text('x')
manifest('made', 'example', resolve('1_residuals', 'nano_vla'), inputs=['in.txt'])
check_inputs('made', 'example')
print(root())
"""


def test_the_api_works_in_another_project(tmp_path):
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nlib_name = another\n')
    said = sh(sys.executable, '-c', ELSEWHERE, cwd=tmp_path, PYTHONPATH=ROOT)
    assert said.rc==0 and said.out.splitlines()[-1]==str(ROOT), said.err
    assert read_json(tmp_path/'made/manifest.json')['params']['own']['episodes']
