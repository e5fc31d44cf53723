"What a start through an adapter must never be: fitted on held-out rows, on other inputs' rows, or silently another one"
import numpy as np, pandas as pd, pytest, torch
from steerlens.acts.store import Writer
from steerlens.core import SteerlensError, generator
from steerlens.running import plan_sweep
from steerlens.sae.adapters import ADAPTERS, NULLS, adapted, begin, pairs, some_rows
from steerlens.sae.models import load_sae, new_sae, save_sae

EPISODES,STEPS = 10, 60


def table(n, task, **more):
    at = np.arange(EPISODES*STEPS).repeat(n)
    return pd.DataFrame(dict(episode=at//STEPS, step=at%STEPS, task=[f'{task}{e}' for e in at//STEPS], **more))


def dataset(folder, task='a', seed=0, held=(8, 9), spoil=None):
    "Two streams of a toy policy: three tokens of width 12 and two of width 6 a step, which share what the step is"
    g = generator('adapters', seed)
    step = torch.randn(EPISODES*STEPS, 12, generator=g)*torch.linspace(3, 1, 12)
    train = [e for e in range(EPISODES) if e not in held]
    with Writer(folder, {}, dict(train=train, validation=list(held)), 1) as w:
        prefix,decision = step.repeat_interleave(3, 0)+1, (2*step[:,:6]-5).repeat_interleave(2, 0)
        if spoil: spoil(prefix, decision)
        w.add('prefix', table(3, task), {'lm.0.out': prefix})
        w.add('decision', table(2, task), {'expert.0.out': decision})
        w.commit()
        return w.finish()


def saved(folder, d_in, site, **kw):
    "A release of a given width"
    sae = new_sae(d_in, 24, **dict(k=4) | kw)
    save_sae(sae, folder, site, torch.ones(24), pd.DataFrame(dict(step=[0])), {}, kw.get('inputs', ()))
    return str(folder)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    here = tmp_path_factory.mktemp('adapters')
    return here, dataset(here/'acts'), saved(here/'wide', 12, 'lm.0.out'), saved(here/'narrow', 6, 'expert.0.out')


def test_pairs_are_of_the_same_step_and_of_the_asked_split(made):
    _,acts,*_ = made
    for split,n in dict(train=8, validation=2).items():
        s,t = pairs((acts, 'lm.0.out'), (acts, 'expert.0.out'), split=split)
        assert len(s)==len(t)==n*STEPS*2
        torch.testing.assert_close((t+5)/2, s[:,:6]-1, rtol=1e-5, atol=1e-5)


def test_rows_of_held_out_episodes_settle_nothing(made, tmp_path):
    "Held-out rows may be anything: the start is the same"
    def spoil(prefix, decision):
        for x in (prefix, decision): x[-len(x)//5:] = x[-len(x)//5:].flip(1)*3
    _,acts,wide,_ = made
    other = dataset(tmp_path/'other', spoil=spoil)
    for name in ADAPTERS:
        a,b = (adapted(wide, name, x, 'expert.0.out', dict(site='lm.0.out')) for x in (acts, other))
        assert a.W_enc.equal(b.W_enc) and a.b_dec.equal(b.b_dec), name


@pytest.mark.parametrize('name', ADAPTERS)
def test_every_adapter_narrows_and_widens(made, name):
    "And is no function of anything but the seed"
    _,acts,wide,narrow = made
    for release,site,home,d in ((wide, 'expert.0.out', 'lm.0.out', 6), (narrow, 'lm.0.out', 'expert.0.out', 12)):
        a,b = (begin(f'{name}:{release}', acts, site, dict(site=home)) for _ in range(2))
        assert a.cfg.d_in==d and a.W_dec.shape==(24, d) and a.W_enc.equal(b.W_enc)
        assert new_sae(d, init=a).cfg.metadata.init['adapter']==name


@pytest.mark.parametrize('null', NULLS)
def test_a_null_keeps_lengths_and_nothing_else(made, null):
    _,acts,wide,_ = made
    a,n = (begin(f'{by}project:{wide}', acts, 'expert.0.out', dict(site='lm.0.out')) for by in ('', f'{null}:'))
    torch.testing.assert_close(n.W_dec.norm(dim=1), a.W_dec.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert torch.cosine_similarity(n.W_dec, a.W_dec).abs().mean() < .6
    assert n.cfg.metadata.init['before']!=a.cfg.metadata.init['before']


def test_two_datasets_pair_only_on_the_same_inputs(made, tmp_path):
    _,acts,wide,_ = made
    same,other = dataset(tmp_path/'same', seed=1), dataset(tmp_path/'other', task='b')
    home = (acts, 'lm.0.out')
    assert len(pairs(home, (same, 'expert.0.out'))[0])
    with pytest.raises(SteerlensError, match='they disagree in task; expected two runs on the same inputs'):
        pairs(home, (other, 'expert.0.out'))
    with pytest.raises(SteerlensError, match='rows of two datasets'): pairs(home, (same, 'lm.0.out'), ['row'])
    with pytest.raises(SteerlensError, match='nothing tells|disagree'):
        adapted(wide, 'procrustes', other, 'expert.0.out', dict(acts=str(acts.folder), site='lm.0.out'))
    adapted(wide, 'project', other, 'expert.0.out', dict(acts=str(acts.folder), site='lm.0.out')) # needs none


WRONG = {
    'nothing says which rows it was made for': ('procrustes:{wide}', {}),
    'is for width 12, .* has \\[6\\]': ('procrustes:{wide}', dict(site='expert.0.out')),
    'not harvested in': ('pad:{wide}', dict(site='lm.7.out')),
    'no column token': ('procrustes:{wide}', dict(site='lm.0.out', by=['token'])),
    "no setting 'ridges'": ('least_squares:{wide}', dict(ridges=1)),
    'rows=True': ('pad:{wide}', dict(rows=True)),
    '5 rows to fit by': ('pad:{wide}', dict(site='lm.0.out', rows=5)),
    'is no adapter or release': ('procrust:{wide}', {}),
    'no catalog.json': ('pad:{wide}', dict(site='lm.0.out', acts='nowhere')),
    'put an adapter|adapter between': ('shuffled:{wide}', {}),
    'no SAE here': ('pad:{here}', dict(site='lm.0.out')),
    "with init=.*wide": ('{wide}', dict(site='lm.0.out')),
}


@pytest.mark.parametrize('says', WRONG)
def test_what_is_wrong_is_said_in_one_line(made, says):
    here,acts,wide,_ = made
    init,adapt = WRONG[says]
    with pytest.raises(SteerlensError, match=says) as e:
        begin(init.format(wide=wide, here=here), acts, 'expert.0.out', adapt)
    assert '\n' not in str(e.value)


def test_a_release_of_nan_is_refused(made, tmp_path):
    _,acts,wide,_ = made
    sae = load_sae(wide)
    sae.W_dec.data[0] = torch.nan
    sae.W_enc.data[:,0] = 9.
    sae.save_model(tmp_path/'nan')
    with pytest.raises(SteerlensError, match='are NaN'):
        adapted(str(tmp_path/'nan'), 'pad', acts, 'expert.0.out', dict(site='lm.0.out'))


def test_rows_many_times_as_long_settle_nothing(tmp_path):
    def spoil(prefix, decision): prefix[:20] *= 1e4
    long = dataset(tmp_path/'long', spoil=spoil)
    assert some_rows(long, 'lm.0.out').norm(dim=1).max() < 100


def test_the_sweep_of_the_expert_s_starts_is_planned(tmp_path):
    plan = plan_sweep('params/sweeps/pi05_expert.yaml', str(tmp_path))
    assert plan['subject']=='pi05' and len(plan['variants'])==24
