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
    for subject in ('nano_vla', 'nano_lm', 'set_model'): (tmp_path/f'params/subjects/{subject}.yaml').touch()
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
    def heard(): signal.signal(signal.SIGINT, signal.SIG_DFL) # which a shell's background jobs ignore
    p = subprocess.Popen([BIN/'steerlens', 'run', '2', 'nano_vla'], cwd=toy, env=env, start_new_session=True,
                         preexec_fn=heard, **pipes)
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


# Forks a sweep for each line that it reads, a folder and workers: having imported everything, it begins at once
SWEEPS = """
import os, sys
from pathlib import Path
import torch
from steerlens.steer.edits import Add, Intervention
from steerlens.steer.trials import Lab
from steerlens.subjects import pi_tiny
from steerlens.subjects.settle import settle

def sweep(folder, workers):
    sys.stdout = open(folder/'log', 'w', buffering=1)
    lab = Lab(settle('pi_tiny'), workers, chunk=2, keep=folder/'chunks')
    trials = lab.steering.trials('drawer_push', 60, 300)
    edits = [Intervention('lm.0.out', 'all', Add(torch.ones(32))).placebo(i) for i in range(60)]
    lab.table(trials, edits, [('drawer_push', 'drawer_pull')]*60).to_parquet(folder/'table.parquet')
    lab.close()

if __name__=='__main__':
    for line in sys.stdin:
        folder,workers = line.split()
        if not (pid := os.fork()):
            sweep(Path(folder), int(workers))
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture
def sweeps(tmp_path):
    "A function (folder, workers) that begins a sweep: its process id, and a function that waits for its status"
    (tmp_path/'sweeps.py').write_text(SWEEPS)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    p = subprocess.Popen([sys.executable, tmp_path/'sweeps.py'], env=os.environ | dict(OMP_NUM_THREADS='1'), **pipes)
    def begin(folder, workers=1):
        folder.mkdir(exist_ok=True)
        print(folder, workers, file=p.stdin, flush=True)
        return int(p.stdout.readline()), lambda: int(p.stdout.readline())
    yield begin
    p.stdin.close()
    p.wait()


# When to kill: after so many more chunks and seconds, or as soon as a file is being written
MOMENTS = [(0, .0), (0, .2), (1, .0), (1, .01), 'writing', (1, .02), (2, .04), 'writing', (3, .06), (4, .09)]


def test_a_sweep_killed_at_ten_moments_goes_on_to_the_same_bytes(sweeps, tmp_path):
    def chunks(): return {p.name: p.stat().st_mtime_ns for p in (tmp_path/'torn/chunks').glob('[!.]*.parquet')}
    def reached(moment, had, pid):
        if moment=='writing': return [*(tmp_path/'torn/chunks').glob(f'.tmp-{pid}-*')]
        return len(chunks())>=had+moment[0]
    def wait_for(moment, had, pid):
        while not reached(moment, had, pid): time.sleep(.0005)
        if moment!='writing': time.sleep(moment[1])
    def went_on(n): return f'{2*n} of 60 were done before' in (tmp_path/'torn/log').read_text()
    assert sweeps(tmp_path/'whole')[1]()==0
    before = {}
    for moment in MOMENTS:
        pid,status = sweeps(tmp_path/'torn', workers=2 if moment==MOMENTS[-1] else 1)
        wait_for(moment, len(before), pid)
        os.kill(pid, signal.SIGKILL)
        assert status()==signal.SIGKILL, 'ended before it could be killed'
        assert before.items() <= chunks().items(), 'a finished chunk was lost or done again'
        if before: assert went_on(len(before))
        before = chunks()
    assert 10 <= len(before) < 30 and not (tmp_path/'torn/table.parquet').exists()
    assert sweeps(tmp_path/'torn', workers=2)[1]()==0
    assert went_on(len(before))
    assert (tmp_path/'torn/table.parquet').read_bytes()==(tmp_path/'whole/table.parquet').read_bytes()
    assert not (tmp_path/'torn/chunks').exists()


PUSH_PULL = 'drawer_push', 'drawer_pull'


def lab_of(tmp_path, chunk=2):
    from steerlens.steer.trials import Lab
    from steerlens.subjects.settle import settle
    return Lab(settle('pi_tiny'), 1, chunk, keep=tmp_path/'chunks')


def misfits():
    "Edits that don't fit, as they would come from a direction's file, and what is said of them"
    import torch
    from steerlens.steer.directions import Direction
    from steerlens.steer.edits import Ablate, Add, Setpoint
    def of(kind, v, site, stream='all'):
        d = Direction('diffmean', v, site, stream, 'a->b')
        return d.site, d.stream, kind(d.residual)
    ours,nan = torch.ones(32), torch.ones(32).index_fill(0, torch.tensor([3]), torch.nan)
    def setpoint(w): return Setpoint(w, 0., 1., 2.)
    return {'the expert\'s width': (*of(Add, torch.ones(16), 'lm.1.out'), 'a vector of width 16; expected 32'),
            'its width, ablated': (*of(Ablate, torch.ones(16), 'lm.1.out'), "Ablate at 'lm.1.out': "),
            'its width, held': (*of(setpoint, torch.ones(16), 'lm.1.out'), "Setpoint at 'lm.1.out': "),
            'fewer tokens': (*of(Add, torch.ones(8, 32), 'lm.1.out'), '8 token vectors; expected 13'),
            'a site that is not here': (*of(Add, ours, 'lm.7.out'), "site 'lm.7.out': no such module"),
            'a stream of the expert': (*of(Add, ours, 'lm.1.out', 'decision'), "no token of stream 'decision'"),
            'one row for all': (*of(Add, torch.ones(48), 'expert_norm.dense.out'), 'a row for each trial'),
            'of nano_vla': (*of(Add, torch.ones(128), 'lm.1.out'), 'a vector of width 128; expected 32'),
            'of walker': (*of(Add, torch.ones(64), 'h.1.out'), "site 'h.1.out': no such module"),
            'NaN': (*of(Add, nan, 'lm.1.out'), "Add at 'lm.1.out': NaN or infinite"),
            'NaN, ablated': (*of(Ablate, nan, 'lm.1.out'), "Ablate at 'lm.1.out': NaN or infinite"),
            'NaN, held': (*of(setpoint, nan, 'lm.1.out'), "Setpoint at 'lm.1.out': NaN or infinite")}


@pytest.mark.parametrize('name', misfits())
def test_an_edit_that_does_not_fit_is_one_line_before_any_trial(name, tmp_path, capsys):
    "Though it is the last one of six, in another chunk than the first"
    import torch
    from steerlens.core import SteerlensError
    from steerlens.steer.edits import Add, Intervention
    site,stream,edit,says = misfits()[name]
    good = [Intervention('lm.1.out', 'all', Add(torch.ones(32))).placebo(i) for i in range(5)]
    lab = lab_of(tmp_path)
    for run in (lambda *x: lab.table(*x, [PUSH_PULL]*6), lab.run):
        with pytest.raises(SteerlensError) as e:
            run(lab.steering.trials(PUSH_PULL[0], 6, 300), [*good, Intervention(site, stream, edit)])
        assert says in str(e.value) and '\n' not in str(e.value)
    assert capsys.readouterr().out=='' and not lab.kept.exists(), 'work had begun'


def test_a_gate_that_never_opens_is_said(tmp_path, capsys):
    import pandas as pd, torch
    from steerlens.steer.edits import Add, During, Intervention, Steps, Stream
    lab = lab_of(tmp_path)
    trials = lab.steering.trials(PUSH_PULL[0], 4, 300)
    plain = lab.table(trials, None, [PUSH_PULL]*4)
    assert 'never' not in capsys.readouterr().out
    for gate in (Steps(1000), During(('no such event',)), Stream(('decision',)), ~Steps(0)):
        edits = [Intervention('lm.0.out', 'all', Add(torch.ones(32), 9.), gate)]*3
        table = lab.table(trials, [*edits, None], [PUSH_PULL]*4)
        assert 'trials: the gate never opened in 3 of 3 gated trials' in capsys.readouterr().out.splitlines()
        pd.testing.assert_frame_equal(table, plain)


def test_a_contrast_with_an_empty_side_is_one_line(tmp_path):
    "By the words, by what happens, and read back from a file"
    import numpy as np
    from dataclasses import replace
    from steerlens.core import SteerlensError
    from steerlens.acts.harvest import harvest
    from steerlens.acts.store import split_episodes
    from steerlens.steer.contrasts import contrasts
    from steerlens.subjects import pi_tiny
    subject,how = pi_tiny.subject(), pi_tiny.steering()
    runs = pi_tiny.runs(subject, episodes=2)
    acts = harvest(subject, runs.batches, ['lm.0.out'], tmp_path/'acts', {}, split_episodes(runs.groups, .5))
    for kind in how.labels:
        def one_side(acts, rows, a, b): return np.full(len(rows), a)
        empty = replace(how, labels=how.labels | {kind: one_side})
        with pytest.raises(SteerlensError, match=rf"drawer_pull \({kind}\): no rows of 'drawer_pull' in stream") as e:
            contrasts(empty, acts, tmp_path/'contrasts')
        assert '\n' not in str(e.value) and not (tmp_path/'contrasts').exists()


def test_a_direction_of_another_model_is_refused(tmp_path):
    import torch
    from steerlens.core import SteerlensError
    from steerlens.steer.directions import Direction
    lab = lab_of(tmp_path)
    other = Direction('diffmean', torch.ones(32), 'lm.0.out', 'all', 'push->pull', origin=dict(subject='another'))
    with pytest.raises(SteerlensError, match="by 'diffmean': found in a model with weights another") as e:
        lab.check_origin([other])
    assert '\n' not in str(e.value)
