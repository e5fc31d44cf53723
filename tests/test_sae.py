"""Training that is killed, starved of disk, fed with damage, or refused loses nothing, and the bytes come out the same

And the fast step on shapes and rows nobody would choose.
"""
import json, os, random, resource, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, xxhash

from steerlens.acts.store import Acts, Writer
from steerlens.acts.stream import Stream
from steerlens.core import SteerlensError, rng, sha256, threads
from steerlens.sae import loop as module
from steerlens.sae.models import new_sae
from steerlens.sae.step import FastStep
from steerlens.sae.train import Rows, Training, train
from conftest import ROOT

KINDS = dict(bf16=dict(k=4, precision='bfloat16'), fp32=dict(k=4, precision='float32'),
             batchtopk=dict(architecture='batchtopk', k=3.5),
             standard=dict(architecture='standard', l1_coefficient=.1)) # takes the dense step
HOW = dict(steps=120, lr=5e-3, measure=10, checkpoint=10, dead_after=1000, resample=25)


def write_acts(folder, seed=0):
    "3,600 rows of 24 numbers, in 6 shards"
    with Writer(folder, dict(toy=seed), dict(train=list(range(30)), validation=list(range(30, 36))), 6) as w:
        for i in range(6):
            x = torch.randn(600, 24, generator=torch.Generator().manual_seed(10*seed+i))
            w.add('lm', pd.DataFrame(dict(episode=[6*i+j//100 for j in range(600)])), {'lm.0.out': x.relu()+.1*x})
            w.commit()
        return w.finish()


class Seen(Stream):
    "A stream that writes down which batch it handed out, and takes its time"
    said,pause,small = None, 0, None
    def __iter__(self):
        for i,x in enumerate(super().__iter__(), 1):
            if i==self.small: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            line = f'{self._done} {xxhash.xxh3_64_hexdigest(x.numpy())}\n'
            if self.said is not None: os.write(self.said, line.encode())
            time.sleep(self.pause)
            yield x


def work(kind, data, folder, pause=0, small=None, seed=0, start=0, callbacks=(), held=None, **how):
    "A training run from disk: 47 batches an epoch, mixed in 11 windows; returns the autoencoder"
    kw = {'k': None, **KINDS[kind]}
    t,acts = Training(**HOW | dict(precision=kw.pop('precision', '')) | how), Acts(data)
    stream = Seen(acts, 'lm.0.out', batch=64, seed=seed, memory_mb=.06, normalise='expected_average_only_in')
    x = acts.x('lm.0.out')
    sae = new_sae(24, 96, seed=start, x_BD=x[:3000]*stream.scale, **kw)
    stream.pause,stream.small,folder = pause, small, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stream.said = os.open(folder.with_suffix('.seen'), os.O_WRONLY|os.O_CREAT|os.O_APPEND)
    try:
        with threads(1): train(sae, stream, x[3000:] if held is None else held(x[3000:]), folder, t, callbacks)
    finally: os.close(stream.said)
    return sae


def steps_in(folder): return [int(p.name) for p in sorted((folder/'checkpoints').glob('[0-9]*'))]


def result(folder):
    "What a finished run amounts to: bytes of its weights and moments, and all that was measured but the rate"
    def bare(log): return [{k: v for k,v in row.items() if k!='rows_per_s'} for row in log]
    out = {}
    for s in steps_in(folder):
        at = folder/'checkpoints'/f'{s:07d}'
        out |= {(s, n): (at/n).read_bytes() for n in ('sae_weights.safetensors', 'training.safetensors', 'cfg.json')}
        state = json.loads((at/'state.json').read_text())['state']
        out[s] = state | dict(log=bare(state['log']))
    bare_file = folder.with_suffix('.bare')
    pd.read_parquet(folder/'metrics.parquet').drop(columns='rows_per_s').to_parquet(bare_file)
    return out | dict(metrics=bare_file.read_bytes(), best=json.loads((folder/'checkpoints/best.json').read_text()))


def seen(folder): return folder.with_suffix('.seen').read_text().splitlines()


FILES = {'activation_scaler.json', 'cfg.json', 'sae_weights.safetensors', 'training.safetensors'}


def sane(folder):
    "The checkpoints that training may go on from are whole; the latest one's step"
    for s in steps_in(folder):
        at = folder/'checkpoints'/f'{s:07d}'
        saved = json.loads((at/'state.json').read_text())
        assert saved['state']['done']==s==saved['state']['log'][-1]['step']
        assert sha256(saved['state'])==saved['files'].pop('state') and set(saved['files'])==FILES
        for n,digest in saved['files'].items(): assert sha256(at/n)==digest, at/n
    return max(steps_in(folder), default=0)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'acts'
    write_acts(folder)
    return folder


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data):
    "The runs that nothing happened to, one of each kind"
    folder = tmp_path_factory.mktemp('whole')
    for kind in KINDS: work(kind, data, folder/kind)
    return folder


def serve(said):
    "Fork a training run for each line that comes in, or wait for one"
    torch.set_num_threads(1)
    x = torch.randn(64, 24)
    for p in ('bfloat16', 'float32'): # the loops are loaded before the first fork
        train(new_sae(24, 96, 4), Rows(x, batch=64), x, None, Training(steps=1, precision=p))
    for line in sys.stdin:
        q = json.loads(line)
        if q['wait']: print('*', os.waitstatus_to_exitcode(os.waitpid(q['wait'], 0)[1]), flush=True)
        elif pid := os.fork(): print('*', pid, flush=True)
        else:
            for fd in (1, 2): os.dup2(os.open(f'{said}.{os.getpid()}.{fd}', os.O_WRONLY|os.O_CREAT), fd)
            status = 2
            try:
                work(*q['run'])
                status = 0
            except SteerlensError as e:
                print(e, file=sys.stderr, flush=True)
                status = 1
            except BaseException as e: print(f'{type(e).__name__}: {e}', file=sys.stderr, flush=True)
            finally: os._exit(status)


def alone(code, **env):
    "What `subprocess` needs to run that, beside these tests, on one thread"
    args = [sys.executable, '-c', f"import sys; sys.path.insert(0, 'tests')\n{code}"]
    return args, dict(cwd=ROOT, env=os.environ | dict(OMP_NUM_THREADS='1') | env, text=True)


class Runs:
    "A process that has the libraries loaded, and forks a run when asked"
    def __init__(self, said, data):
        self.said,self.data = said, data
        args,kw = alone(f'from test_sae import serve; serve({str(said)!r})')
        self.p = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **kw)

    def _ask(self, wait=None, **q):
        print(json.dumps(dict(wait=wait, **q)), file=self.p.stdin, flush=True)
        while not (line := self.p.stdout.readline()).startswith('* '): assert line, 'the process that forks has ended'
        return int(line[2:])

    def start(self, kind, folder, pause=0, small=None):
        return self._ask(run=[kind, str(self.data), str(folder), pause, small])

    def wait(self, pid):
        "Exit status, and what it said on stderr"
        return self._ask(wait=pid), Path(f'{self.said}.{pid}.2').read_text().strip()


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data, whole): # after `whole`, which compiles the loops
    r = Runs(tmp_path_factory.mktemp('said')/'said', data)
    yield r
    r.p.stdin.close()
    r.p.wait()


@pytest.mark.parametrize('kind', KINDS)
def test_the_same_bytes_in_another_process(tmp_path, whole, runs, kind):
    assert runs.wait(runs.start(kind, tmp_path/'run'))==(0, '')
    assert result(tmp_path/'run')==result(whole/kind)
    assert seen(tmp_path/'run')==seen(whole/kind) and len(seen(whole/kind))==HOW['steps']


@pytest.mark.parametrize('kind', KINDS)
def test_twelve_kills(tmp_path, whole, runs, kind):
    folder,when,kills,at,longest,begun = tmp_path/'run0', random.Random(kind), 0, [0], .2, time.perf_counter()
    while kills < 12 or len(set(at)) <= 3 and kills < 60: # a loaded machine takes longer to its first checkpoint
        before = len(seen(folder)) if folder.with_suffix('.seen').exists() else 0
        pid = runs.start(kind, folder, .001)
        time.sleep(when.uniform(.01, longest))
        os.kill(pid, signal.SIGKILL) # Not waited for yet, so it is still this process
        status,said = runs.wait(pid)
        assert status in (0, -signal.SIGKILL), said
        if folder.with_suffix('.seen').exists():
            now = seen(folder)[before:]
            assert now==seen(whole/kind)[at[-1]:][:len(now)], 'other batches'
        else: assert not at[-1], 'batches of which nothing is written down'
        at.append(sane(folder))
        assert at[-1] >= at[-2], 'a checkpoint was lost'
        # However fast this machine is, a checkpoint or two between kills, or none
        longest *= .8 if at[-1] > at[-2]+20 else 1.3 if at[-1]==at[-2] else 1
        if not status: # It had finished: on to another one
            assert result(folder)==result(whole/kind)
            folder = tmp_path/f'run{len(at)}'
            at.append(0)
        kills += status!=0
    assert len(set(at)) > 3, f'the kills fell all in the same place: {at}'
    assert runs.wait(runs.start(kind, folder))==(0, '')
    assert result(folder)==result(whole/kind)
    print(f'{kind}: steps of the latest checkpoint after each kill: {at}; {time.perf_counter()-begun:.1f} s')


class Cut(BaseException): pass


def gone_on(kind, data, folder, whole):
    "It goes on, and ends as if nothing had happened"
    work(kind, data, folder)
    assert result(folder)==result(whole/kind)
    best = 'checkpoints/best.json'
    assert steps_in(folder)==steps_in(whole/kind)
    assert (folder/best).read_bytes()==(whole/kind/best).read_bytes()


def test_killed_between_the_last_checkpoint_and_its_mark(tmp_path, data, monkeypatch):
    write = module.write_json
    def cut(path, x):
        if Path(path).name=='best.json' and x['step']==HOW['steps']: raise Cut
        write(path, x)
    monkeypatch.setattr(module, 'write_json', cut)
    with pytest.raises(Cut): work('fp32', data, tmp_path/'run', measure=60, checkpoint=60)
    monkeypatch.undo()
    work('fp32', data, tmp_path/'run', measure=60, checkpoint=60)
    assert json.loads((tmp_path/'run/checkpoints/best.json').read_text())['step']==HOW['steps']


def test_killed_while_an_old_checkpoint_is_removed(tmp_path, data, monkeypatch):
    def cut(path, *args, **kw):
        next(p for p in Path(path).rglob('*') if p.is_file()).unlink()
        raise Cut
    monkeypatch.setattr(shutil, 'rmtree', cut)
    with pytest.raises(Cut): work('fp32', data, tmp_path/'run')
    monkeypatch.undo()
    assert {len(list(p.iterdir())) for p in (tmp_path/'run/checkpoints').glob('[0-9]*')}=={5}


def test_what_a_kill_left_half_written_is_removed(tmp_path, data):
    (left := tmp_path/'run/checkpoints/.tmp-99999999-0000010').mkdir(parents=True)
    (left/'sae_weights.safetensors').write_bytes(bytes(999))
    (tmp_path/'run/.tmp-99999999-metrics.parquet').touch()
    work('fp32', data, tmp_path/'run', steps=10)
    assert not list((tmp_path/'run').rglob('.tmp-*'))


@pytest.mark.parametrize('kind', ['fp32', 'standard'])
def test_a_full_disk(tmp_path, whole, runs, data, kind):
    "Played by a limit on the size of files, which comes after batch 25"
    rc,said = runs.wait(runs.start(kind, tmp_path/'run', small=25))
    assert sane(tmp_path/'run')==20 and not list((tmp_path/'run').rglob('.tmp-*'))
    gone_on(kind, data, tmp_path/'run', whole)
    assert rc==1 and said.count('\n')==0 and 'free some space' in said, said


@pytest.mark.parametrize('checkpoints', [1.5, 2.2, 3.3])
def test_a_full_file_system(tmp_path, whole, runs, data, checkpoints):
    disk = tmp_path/'disk'
    disk.mkdir()
    size = sum(f.stat().st_size for f in (whole/'fp32/checkpoints/0000120').iterdir())
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={int(size*checkpoints)}', 'tmpfs', disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('no file system can be mounted here')
    try:
        rc,said = runs.wait(runs.start('fp32', disk/'run'))
        assert sane(disk/'run') > 0
        again = runs.wait(runs.start('fp32', disk/'run'))
        shutil.copytree(disk/'run', tmp_path/'run')
    finally: subprocess.run(['umount', disk], check=True)
    assert not list((tmp_path/'run').rglob('.tmp-*'))
    gone_on('fp32', data, tmp_path/'run', whole)
    for rc,said in ((rc, said), again): assert rc==1 and said.count('\n')==0 and 'free some space' in said, said


def flip(f):
    raw = bytearray(f.read_bytes())
    raw[-1] ^= 1
    f.write_bytes(raw)


def edit(f, **kw): f.write_text(json.dumps((old := json.loads(f.read_text())) | dict(state=old['state'] | kw)))


W,T,STATE,CFG = 'sae_weights.safetensors', 'training.safetensors', 'state.json', 'cfg.json'
DAMAGE = { # what: (file, how)
    'weights truncated': (W, lambda f: os.truncate(f, 5000)),
    'weights empty': (W, lambda f: os.truncate(f, 0)),
    'weights lost': (W, Path.unlink),
    'weights changed': (W, flip),
    'weights of another': (W, lambda f: shutil.copy(f.parents[1]/'0000110'/W, f)),
    'moments truncated': (T, lambda f: os.truncate(f, 5000)),
    'moments lost': (T, Path.unlink),
    'moments changed': (T, flip),
    'state truncated': (STATE, lambda f: os.truncate(f, 500)),
    'state empty': (STATE, lambda f: os.truncate(f, 0)),
    'state lost': (STATE, Path.unlink),
    'state is something else': (STATE, lambda f: f.write_text('[]')),
    'state without its entries': (STATE, lambda f: f.write_text('{}')),
    'state with another step': (STATE, lambda f: edit(f, done=60)),
    'configuration truncated': (CFG, lambda f: os.truncate(f, 5)),
    'configuration lost': (CFG, Path.unlink),
    'all lost': ('.', lambda f: [p.unlink() for p in f.iterdir()]),
}


def contents(folder): return {f.relative_to(folder).as_posix(): sha256(f) for f in folder.rglob('*') if f.is_file()}


@pytest.fixture
def copy(tmp_path, whole):
    shutil.copytree(whole/'fp32', tmp_path/'run')
    return tmp_path/'run'


@pytest.mark.parametrize('what', DAMAGE)
def test_damage_is_named_and_costs_one_checkpoint(copy, data, whole, what):
    name,how = DAMAGE[what]
    how(copy/'checkpoints/0000120'/name)
    before = contents(copy)
    with pytest.raises(SteerlensError) as e: work('fp32', data, copy)
    said = str(e.value)
    assert said.startswith(str(copy/'checkpoints/0000120')) and '\n' not in said, said
    assert 'remove it, and training goes on from 0000110' in said, said
    assert contents(copy)==before
    shutil.rmtree(copy/'checkpoints/0000120') # As the line says
    gone_on('fp32', data, copy, whole)


def test_the_only_checkpoint_is_damaged(tmp_path, data):
    work('fp32', data, tmp_path/'run', steps=10)
    flip(tmp_path/'run/checkpoints/0000010'/W)
    with pytest.raises(SteerlensError, match='remove it, and training goes on from the start'):
        work('fp32', data, tmp_path/'run', steps=10)


def test_a_damaged_checkpoint_may_be_kept_under_another_name(copy, data, whole):
    flip(copy/'checkpoints/0000120'/W)
    (copy/'checkpoints/0000120').rename(copy/'checkpoints/0000120.bad')
    work('fp32', data, copy)
    shutil.rmtree(copy/'checkpoints/0000120.bad')
    assert result(copy)==result(whole/'fp32')


OTHERS = dict(data={}, order=dict(seed=1), weights=dict(start=1), settings=dict(dead_after=2000),
              held=dict(held=lambda x: x.flip(0)[:600]*2))
REFUSAL = '^.*/0000120: of a run with other settings or data, or made by other code; .*$'


@pytest.mark.parametrize('what', OTHERS)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, copy, data, what):
    before = contents(copy)
    write_acts(tmp_path/'other', seed=1)
    rows = tmp_path/'other' if what=='data' else data
    with pytest.raises(SteerlensError, match=REFUSAL) as e: work('fp32', rows, copy, **OTHERS[what])
    assert '\n' not in str(e.value) and contents(copy)==before


def test_other_rows_in_memory_are_refused(tmp_path):
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    how = Training(steps=2, checkpoint=1)
    train(new_sae(8, 16, 2), Rows(x, batch=64), x, tmp_path, how)
    x[1:] *= 2
    with pytest.raises(SteerlensError, match='other settings or data'):
        train(new_sae(8, 16, 2), Rows(x, batch=64), x, tmp_path, how)


# Only in its first epoch does a stream look for itself
NOT_FINITE = [(20, 'fp32', 'nan'), (20, 'standard', 'inf'),
              (60, 'fp32', '-nan'), (60, 'bf16', 'nan'), (60, 'bf16', 'inf'),
              (60, 'batchtopk', 'nan'), (60, 'batchtopk', '-nan'), (60, 'standard', 'nan')]


@pytest.mark.parametrize('at,kind,bad', NOT_FINITE)
def test_numbers_that_are_not_finite(tmp_path, data, whole, kind, at, bad):
    "A shard damaged while a run reads it"
    shutil.copytree(data, tmp_path/'acts')
    shard = tmp_path/'acts/lm/lm.0.out_0002.safetensors'
    good = shard.read_bytes()
    def damage(log):
        if log.step.iloc[-1]!=at: return
        with open(shard, 'r+b') as f:
            for row in range(0, 600, 5):
                f.seek(4096+row*96)
                f.write(np.float32(float(bad)).tobytes())
    with pytest.raises(SteerlensError) as e: work(kind, tmp_path/'acts', tmp_path/'run', callbacks=[damage])
    said = str(e.value)
    assert '\n' not in said and (str(shard) if at==20 else 'not finite; look for NaN') in said, said
    assert sane(tmp_path/'run') >= at
    shard.write_bytes(good)
    gone_on(kind, tmp_path/'acts', tmp_path/'run', whole)


def test_a_single_row_held_out():
    x = torch.randn(64, 8)
    with pytest.raises(SteerlensError, match='at least two'):
        train(new_sae(8, 16, 2), Rows(x, batch=64), x[:1], None, Training(steps=1))


def test_a_site_of_width_one_with_dead_latents():
    x = torch.rand(64, 1)+1
    train(sae := new_sae(1, 16, 2), Rows(x, batch=64), x, None, Training(steps=3, dead_after=64))
    assert all(p.isfinite().all() for p in sae.parameters())


def test_rows_that_are_all_zero():
    with pytest.raises(SteerlensError, match='all values are zero'): Rows(torch.zeros(64, 8), batch=64)


def case(i, dtype='float64'):
    "An autoencoder, two batches of different sizes, and which latents are dead; every fifth has a shape at the edge"
    import sae_lens
    g = rng('fast step', i)
    pick = lambda *choices: choices[g.integers(len(choices))]
    D,F,B = int(g.integers(1, 71)), int(g.integers(2, 601)), g.integers(1, 131, 2).tolist()
    if i%5==0: D,F,B = pick(1, 2, 70), pick(2, 3, 600), [pick(1, 2, 130), 1]
    k,name = pick(1, F, int(g.integers(1, F+1)), int(g.integers(1, min(F, 9)+1))), ('TopK','BatchTopK')[i%2]
    if name=='BatchTopK' and i%3==0 and k>1: k -= .3
    torch.manual_seed(i)
    kind,config = (getattr(sae_lens, f'{name}TrainingSAE{end}') for end in ('', 'Config'))
    sae = kind(config(d_in=D, d_sae=F, k=k, dtype=dtype, rescale_acts_by_decoder_norm=bool(g.integers(2))))
    sae.W_dec.data.mul_(torch.rand(F, 1, dtype=sae.dtype)+.5)
    sae.b_dec.data.normal_(std=.1)
    rows = ('random', 'equal', 'repeated', 'zero', 'none positive')[i%11%5]
    some = ('no', 'one', 'few', 'most', 'all')[g.integers(5)]
    sae.b_enc.data.normal_(std=.05).sub_(1e3 if rows=='none positive' else 0)
    xs = [torch.randn(b, D, dtype=sae.dtype) for b in B]
    for x in xs:
        if rows=='equal': x[:] = x[0].clone()
        if rows=='repeated': x[len(x)//3:2*len(x)//3] = x[0].clone()
        if rows=='zero': x[::2] = 0
    dead = None if some=='no' or D==1 else torch.rand(F) < dict(one=0, few=.1, most=.9, all=2)[some]
    if some=='one' and dead is not None: dead[-1] = True
    return sae, xs, dead, f'{name}, d_in {D}, d_sae {F}, k {k}, batches {B}, rows {rows}, dead {some}'


def dense(sae, x, dead):
    "Loss, codes and gradients by sae-lens and autograd"
    from sae_lens.saes.sae import TrainStepInput
    how = dict(coefficients={}, n_training_steps=0, is_logging_step=False)
    out = sae.training_forward_pass(TrainStepInput(sae_in=x, dead_neuron_mask=dead, **how))
    names = 'W_dec','W_enc','b_enc','b_dec'
    return out, dict(zip(names, torch.autograd.grad(out.loss, [getattr(sae, n) for n in names])))


def near(a, b): torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10*max(1., float(b.abs().max())))


@pytest.mark.parametrize('i', range(48))
def test_gradients_are_autograd_s(i):
    sae,xs,dead,what = case(i)
    fast = FastStep(sae)
    for x in xs: # the second one in the arrays of the first
        out,right = dense(sae, x, dead)
        n,(step,found) = int((out.feature_acts>0).sum()), fast.gradients(x, dead)
        if round(step.l0*len(x))!=n: # BatchTopK keeps all that are tied for the last place
            assert 'repeated' in what or 'equal' in what or 'zero' in what, what
            assert type(sae).__name__.startswith('Batch') and n < round(step.l0*len(x)) < n+len(x), what
            continue
        assert step.mse==pytest.approx(out.losses['mse_loss'].item(), 1e-9), what
        assert step.aux==pytest.approx(out.losses['auxiliary_reconstruction_loss'].item(), 1e-9), what
        assert torch.equal(step.fired, (out.feature_acts>0).sum(0)), what
        for k in right: near(found[k], right[k])
        assert step.grad_norm==pytest.approx(sum(float(v.square().sum()) for v in right.values())**.5, 1e-7), what


def updates(cases, encode=torch.bfloat16):
    "A few updates of each, as in training; where indices are checked, raises when a loop leaves its arrays"
    for i in cases:
        sae,xs,dead,what = case(i, 'float32')
        fast = FastStep(sae, encode=encode)
        for x in xs*2:
            step = fast.step(x, 1e-3, dead)
            assert step.l0 <= sae.cfg.k or 'Batch' in what, what
            assert all(p.isfinite().all() for p in sae.parameters()), what


@pytest.mark.parametrize('encode', [torch.float32, torch.bfloat16], ids=str)
def test_updates_of_any_shape(encode): updates(range(48), encode)


def test_no_loop_leaves_its_arrays(tmp_path):
    "Compiled once more, with checks of every index"
    checked = dict(NUMBA_BOUNDSCHECK='1', NUMBA_OPT='0', NUMBA_CACHE_DIR=str(tmp_path))
    args,kw = alone('from test_sae import updates; updates(range(0, 48, 4)); print("done")', **checked)
    r = subprocess.run(args, capture_output=True, **kw)
    assert r.returncode==0 and r.stdout.endswith('done\n'), r.stderr[-3000:]
    assert list(tmp_path.rglob('*.nbc')), 'nothing was compiled'


@pytest.mark.parametrize('k', range(1, 13))
def test_ties(k):
    "Five latents in three identical copies each: whichever is taken, the loss is the same"
    import sae_lens
    g = torch.Generator().manual_seed(k)
    config = dict(d_in=7, d_sae=15, k=k, dtype='float64', rescale_acts_by_decoder_norm=bool(k%2))
    sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**config))
    W = torch.randn(5, 7, generator=g, dtype=torch.float64).repeat(3, 1)[torch.randperm(15, generator=g)]
    sae.W_dec.data.copy_(W); sae.W_enc.data.copy_(W.T)
    x = torch.randn(40, 7, generator=g, dtype=torch.float64)
    step,_ = FastStep(sae).gradients(x)
    assert step.mse==pytest.approx(dense(sae, x, None)[0].losses['mse_loss'].item(), 1e-9)
