"""Training in several processes, as the command starts it: one is killed, others go on to the bytes of one"""
import os, shutil, signal, subprocess, time
from pathlib import Path
import pandas as pd, pytest, torch
from safetensors.torch import load_file
from steerlens.acts.store import Writer
from steerlens.core import threads, write_json
from steerlens.params import resolve
from steerlens.sae.sites import train_sites
from conftest import BIN, ROOT

pytestmark = pytest.mark.slow # each start imports torch several times; notebooks 31 to 34 test the same in forks
SITE,STEPS = 'lm.0.out', 300
ASKED = [f'sites=[{SITE}]', 'd_sae=96', 'k=4', f'steps={STEPS}', 'batch=200', 'measure=100', 'checkpoint=50',
         'dead_after=2000', 'resample=70', 'memory_mb=64', 'held_rows=400']
KILLED = 'steerlens: process 1 of 2: killed by SIGKILL; start again: training goes on from its latest checkpoint'


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    "Where phase 1 has left random rows"
    d = tmp_path_factory.mktemp('ranks')
    x = torch.randn(6000, 32, generator=torch.Generator().manual_seed(0))
    with Writer(d/'acts', {}, dict(train=list(range(8)), validation=[8, 9]), 1) as w:
        w.add('all', pd.DataFrame(dict(episode=torch.arange(6000).numpy()//600)), {SITE: x*x.abs()})
        w.commit()
        w.finish()
    write_json(d/'reports/1_residuals/nano_vla/metrics.json', dict(acts=str(d/'acts')))
    return d


def asked(out): return [*ASKED, f'out={out}', 'harvest=']


def started(out, n):
    "Training in n processes"
    command = [f'{BIN}/steerlens', 'sae', 'train', 'nano_vla', *asked(out), '--processes', str(n), '--timeout', '60']
    at = dict(cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    at['env'] = os.environ | dict(OMP_NUM_THREADS='1')
    return subprocess.Popen(command, **at)


def last(out):
    "What the last checkpoint holds"
    folder = out/'sae/nano_vla'/SITE/'checkpoints'/f'{STEPS:07d}'
    return load_file(folder/'sae_weights.safetensors') | load_file(folder/'training.safetensors')


def test_a_killed_process_ends_all_and_others_go_on_to_the_bytes_of_one(out, tmp_path, capsys):
    with started(out, 2) as p:
        try:
            while not [*out.glob('sae/nano_vla/*/checkpoints/0000*')]: assert p.poll() is None and not time.sleep(.02)
            ranks = Path(f'/proc/{p.pid}/task/{p.pid}/children').read_text().split()
            began = time.time()
            os.kill(int(ranks[-1]), signal.SIGKILL)
            said = p.communicate(timeout=30)
        finally: p.kill()
    assert p.returncode and time.time()-began < 20
    assert said[1].strip().splitlines()[-1] == KILLED
    assert not [r for r in ranks if Path(f'/proc/{r}').exists()]
    with started(out, 3) as p: said = p.communicate(timeout=240)
    assert p.returncode==0, said
    assert 'from update ' in said[0] and 'in 3 processes' in said[0]

    for f in ('acts', 'reports'): shutil.copytree(out/f, tmp_path/f)
    with threads(1):
        train_sites(resolve('2_sae', 'nano_vla', asked(tmp_path)))
        capsys.readouterr()
        train_sites(resolve('2_sae', 'nano_vla', asked(out))) # as phase 2 would: nothing is left to do
    assert f'from update {STEPS:,}' in capsys.readouterr().out
    one,several = last(tmp_path), last(out)
    assert one.keys()==several.keys()
    for k,v in one.items(): assert torch.equal(v, several[k]), k


def test_what_cant_work_is_said_once(out):
    with started(out/'nowhere', 2) as p: said = p.communicate(timeout=60)
    assert p.returncode==1 and len(said[1].splitlines())==1 and 'could not be read' in said[1], said
