"The walker: the same bytes in any company, bounds that nobody crosses unedited, weights that are the measured ones"
import numpy as np
import pytest
import torch
from steerlens.core import SteerlensError, read_manifest, root, sha256, threads
from steerlens.steer.edits import Add, Intervention
from steerlens.steer.trials import Lab
from steerlens.subjects import walker
from steerlens.subjects.settle import settle

SEEDS = [300, 301, 302, 303, 304, 305]


@pytest.fixture(scope='module')
def walks():
    with threads(1): return walker.rollout(walker.subject(), SEEDS)


def same(a, b): return (a.fell, a.steps, a.reward)==(b.fell, b.steps, b.reward) and np.array_equal(a.felt, b.felt)


def test_the_same_trial_gives_the_same_bytes(walks):
    with threads(1): again = walker.rollout(walker.subject(), SEEDS)
    assert all(map(same, walks, again))


@pytest.mark.parametrize('batch', [1, 4, 64])
def test_company_makes_no_difference(walks, batch):
    "Other trials in the batch, in another order; few rows may round differently, so there only the outcome counts"
    with threads(1): turned = walker.rollout(walker.subject(), SEEDS[::-1], batch=batch)[::-1]
    if batch==64: assert all(map(same, walks, turned))
    assert [(e.fell, e.steps) for e in walks]==[(e.fell, e.steps) for e in turned]


def test_one_worker_or_two_the_same_bytes():
    edits = [Intervention('h.1.out', 'all', Add(torch.ones(64), .01)).placebo(i) for i in range(len(SEEDS))]
    found = []
    for workers in (1, 2):
        with Lab(settle('walker'), workers, chunk=3) as lab: found.append(lab.run(SEEDS, edits))
    assert all(map(same, *found))


def test_an_edit_of_nothing_changes_nothing(walks):
    nothing = [Intervention('h.2.out', 'all', Add(torch.ones(64), 0.))]*len(SEEDS)
    with Lab(settle('walker'), 1) as lab: assert all(map(same, walks, lab.run(SEEDS, nothing)))


def test_no_unedited_walk_flips():
    "On seeds that neither the bounds nor any trial were taken from"
    with threads(1): held = walker.rollout(walker.subject(), [*range(60_000, 60_100)])
    flips = [(i, b) for i,e in enumerate(held) for b in walker.BOUNDS if walker.walks(e) and walker.beyond(e, b)]
    assert len(flips)<=1, flips # the bounds were measured on 400 walks; one in a hundred may go beyond
    assert np.mean([walker.walks(e) for e in held])>=.9


def test_the_shipped_weights_are_the_measured_ones():
    m = read_manifest(root()/'weights/walker', 'walker-weights')
    assert m['sha256']==sha256(root()/'weights/walker/model.safetensors')
    assert m['success']['walk']>=.9
    (slowest,fastest),(forward,back) = m['bounds']['speed'], m['bounds']['tilt']
    assert walker.BOUNDS['slow']<=slowest and fastest<=walker.BOUNDS['fast']
    assert walker.BOUNDS['lean']<=forward and back<=walker.BOUNDS['upright']


def test_missing_weights_are_one_line(tmp_path):
    with pytest.raises(SteerlensError, match='no weights; `make subject SUBJECT=walker` trains them') as e:
        walker.subject(tmp_path)
    assert '\n' not in str(e.value)
