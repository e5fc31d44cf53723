"What explanations are worth: cases where agreement statistics, prediction sets and sanity checks often go wrong"
from dataclasses import replace
from multiprocessing import get_context
import numpy as np, pandas as pd
import pytest
import torch
from steerlens.core import rng
from steerlens.explain.carried import asked, carried, measured
from steerlens.explain.conformal import calibrated
from steerlens.explain.faithful import patching_agreement
from steerlens.explain.human import make_form, open_form
from steerlens.explain.sanity import groups, randomised
from steerlens.explore.toy import toy_bench
from steerlens.stats import krippendorff

O = np.nan


@pytest.mark.parametrize('ratings,scale,alpha', [
    ([[3,3,3,3,3], [3,3,3,3,O], [3,3,O,3,3], [3,3,O,3,3], [3,3,3,1,3]], 'nominal', 0.), # one disagreement among many
    ([[1,1,O], [1,1,1], [2,O,2]], 'nominal', 1.), # an answer that is missing is no answer
    ([[1,O], [2,2], [1,1], [O,O]], 'nominal', 1.)]) # one rating, or none
def test_agreement_where_others_fail(ratings, scale, alpha):
    assert krippendorff(ratings, scale)['alpha']==pytest.approx(alpha, abs=1e-9)


def test_a_rater_of_one_item_is_no_reason_for_nan():
    few = np.full((60, 2), O)
    few[:,0] = rng('few').integers(0, 2, 60)
    few[:9,1] = few[:9,0]
    found = krippendorff(few, 'nominal')
    assert found['alpha']==1 and found['n_items']==9 and np.isfinite(found['lo'])


def test_sets_from_votes_are_not_larger_than_promised():
    "Probabilities that are shares of 30 votes are tied everywhere; sets by `aps` cover as promised all the same"
    g = rng('votes')
    def votes(n):
        p = g.dirichlet([.15]*10, n)
        y = (p.cumsum(1) < g.random((n, 1))).sum(1)
        return np.stack([g.multinomial(30, q) for q in p])/30, y, np.arange(n)
    for score in ('lac', 'aps'):
        m = calibrated(*votes(1000), score=score).measured(*votes(2000))
        assert abs(m['coverage']-.9) < .03, (score, m)
        assert m['empty']==0 or m['coverage'] > .87 # empty sets are counted as what they are: misses


def test_ranks_know_no_units(tmp_path):
    toy = toy_bench(tmp_path/'codes/toy', 100)
    lines = asked(toy, 12)
    found = [measured(toy, line, p, p.latents) for line,p in zip(lines.to_dict('records'), carried(toy, lines))]
    scaled = [replace(p, effects=100*p.effects) for p in found]
    assert patching_agreement(scaled, draws=10)==patching_agreement(found, draws=10)


def test_random_weights_leave_every_kind_of_layer_finite():
    from torch.nn import BatchNorm1d, Conv1d, Flatten, LayerNorm, Linear, Sequential
    net = Sequential(Conv1d(2, 4, 3), BatchNorm1d(4), LayerNorm(6), Flatten(), Linear(24, 3)).eval()
    kept = {k: v.clone() for k,v in net.state_dict().items()}
    names = [n for some in groups(net).values() for n in some]
    x = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))
    own = net(x)
    with randomised(net, names):
        new = net(x)
        assert new.isfinite().all() and not torch.equal(new, own)
    assert all(torch.equal(v, kept[k]) for k,v in net.state_dict().items())


def rate(folder, i):
    form = open_form(folder)
    for item in form.order('ann')[i::2]: form.rate('ann', {item: 4})


def test_two_windows_of_one_person_lose_nothing(tmp_path):
    t = pd.DataFrame(dict(context='x', said=list('abcdefgh'), document=range(8)))
    form = make_form(tmp_path/'form', t, dict(ranked=[f'because {i}' for i in range(8)]))
    both = [get_context('fork').Process(target=rate, args=(form.folder, i)) for i in range(2)]
    for p in both: p.start()
    for p in both: p.join()
    assert [p.exitcode for p in both]==[0, 0]
    assert not form.left('ann') and len(form.ratings())==16
    assert sorted(form.left('bob'))==sorted(form.items) # somebody else is asked the same
