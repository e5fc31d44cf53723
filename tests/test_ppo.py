"Tuning that is killed, fed with nonsense, or given another model: refused or resumed, to the same bytes"
import os, random, signal, sys, time, traceback
from types import SimpleNamespace
import pytest, torch

from steerlens.core import SteerlensError, threads
from steerlens.decoders.controls import Watch
from steerlens.decoders.ppo import GRADERS, Frozen, Settings, Text, honest, tune
from steerlens.decoders.toy import toy

SMALL = Settings(batch=4, epochs=1, minibatches=1, scale=.0008, every=2, n_text=16) # 2, 5 and 2 updates
SHORT = Settings(**vars(SMALL) | dict(scale=.0005)) # 1, 3 and 1


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A frozen model on a few prompts, a head, text; one thread, so that a fork can go on computing"
    with threads(1):
        t = toy(tmp_path_factory.mktemp('toy'))
        env = Frozen(t.lm, t.sae, t.can, t.prompts('train', 6))
        yield SimpleNamespace(toy=t, env=env, text=Text(env, t.windows('train', 8)))


def work(w, folder, s=SMALL, **how): return tune(w.env, w.toy.head, w.text, s, folder, **how)


def result(folder):
    "All bytes of the last checkpoint"
    last = sorted((folder/'checkpoints').glob('[0-9]*'))[-1]
    return last.name, {f.name: f.read_bytes() for f in last.iterdir()}


def started(w, folder):
    "The same in a process of its own"
    if pid := os.fork(): return pid
    try:
        sys.stdout = open(os.devnull, 'w')
        work(w, folder)
        os._exit(0)
    except BaseException: traceback.print_exc()
    os._exit(1)


@pytest.fixture(scope='module')
def whole(world, tmp_path_factory):
    "Never interrupted; and how long that takes"
    folder,begun = tmp_path_factory.mktemp('whole'), time.perf_counter()
    work(world, folder)
    return folder, time.perf_counter()-begun


def test_ten_kills(world, whole, tmp_path):
    when,at,folder = random.Random('kills'), [], tmp_path/'run'
    for i in range(10):
        pid = started(world, folder)
        time.sleep(when.uniform(.02, .4)*whole[1])
        os.kill(pid, signal.SIGKILL) # not waited for yet, so it is still this process
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGKILL)
        at.append(max((int(p.name) for p in (folder/'checkpoints').glob('[0-9]*')), default=0))
    assert at==sorted(at) and at[-1] > 0, f'a checkpoint was lost: {at}'
    work(world, folder)
    assert result(folder)==result(whole[0]), at
    assert not list(folder.rglob('.tmp-*'))


def test_nothing_is_learnt_from_nan(world, tmp_path, monkeypatch):
    "Refused at the fourth update; the second one's checkpoint is kept, and the run goes on when it is mended"
    calls = []
    def broken(env, which, token, g):
        calls.append(1)
        success,at = honest(env, which, token, g)
        return success*(torch.nan if len(calls)==4 else 1), at
    monkeypatch.setitem(GRADERS, 'broken', broken)
    s = Settings(**vars(SHORT) | dict(reward='broken'))
    with pytest.raises(SteerlensError, match='reward: NaN or infinite in 4 episodes'): work(world, tmp_path/'run', s)
    assert result(tmp_path/'run')[0]=='0000002'
    assert len(work(world, tmp_path/'run', s).log)==3


def test_nothing_finished(world, monkeypatch):
    "No episode is ever decided: all fail alike, and nothing breaks"
    def never(env, which, token, g): return torch.zeros(len(which)), torch.full((len(which),), env.horizon-1)
    monkeypatch.setitem(GRADERS, 'never', never)
    for form in ('ours', 'document'):
        done = work(world, None, Settings(**vars(SHORT) | dict(reward='never', form=form)))
        assert torch.cat([p.flatten() for p in done.run.policy.parameters()]).isfinite().all()
        assert (done.log.task==0).all()


def test_other_settings_or_another_model_are_refused(world, tmp_path):
    work(world, tmp_path/'run', SHORT)
    with pytest.raises(SteerlensError, match='of a run with other settings'): work(world, tmp_path/'run')
    weight = world.toy.lm.model.transformer.wpe.weight
    with torch.no_grad(): weight[0,0] += 1
    with pytest.raises(SteerlensError, match='model'): work(world, tmp_path/'run')
    with torch.no_grad(): weight[0,0] -= 1


def test_bad_input_is_one_line(world):
    t,p = world.toy, world.toy.prompts('train', 2)
    long = p.assign(ids=[[0]*250]*len(p))
    for call,said in ((lambda: Frozen(t.lm, t.sae, t.can, p[:0]), 'prompts: none'),
                      (lambda: Frozen(t.lm, t.sae, t.can, long), '266 tokens with their answers'),
                      (lambda: Text(world.env, []), 'text: no batches'),
                      (lambda: Watch(Frozen(t.lm, t.sae, t.can, p[:2]), t.head), 'groups; expected 5 or more'),
                      (lambda: work(world, None, Settings(batch=0)), 'Settings: batch: 0')):
        with pytest.raises(SteerlensError, match=said) as e: call()
        assert '\n' not in str(e.value)
