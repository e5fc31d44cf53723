"SAEBench's scores on the same activations, recorded by its own code: `tests/parity/saebench.py`"
import sys
import pytest
import torch
from steerlens.core import read_json
from conftest import ROOT

sys.path.insert(0, str(ROOT/'tests'/'parity'))
import saebench as parity

THEIRS = read_json(parity.FILE)
TEXTS = 2*60 # That a probe is judged by; another processor may round one of them to the other side


def test_sparse_probing_is_theirs():
    from steerlens.sae.probing import sparse_probing
    train,test,sae = parity.labelled()
    ours = sparse_probing(train, test, sae.encode)
    assert [*ours]==[*THEIRS['probing']]
    for score,by in THEIRS['probing'].items(): assert ours[score]==pytest.approx(by, abs=1.5/TEXTS), score


def test_targeted_probe_perturbation_is_theirs():
    from steerlens.sae.perturbation import perturbation
    ours = perturbation(*parity.labelled(), tuple(parity.NS))
    for label,by in THEIRS['perturbation'].items(): assert ours[label]==pytest.approx(by, abs=3/TEXTS), label


def test_absorption_is_theirs():
    from steerlens.sae.absorption import absorbed, f1_of, letter_latents, letter_of, letter_probe
    x_of,*sides,sae = parity.words()
    x = [torch.stack([x_of[w] for w in side]) for side in sides]
    y = [torch.tensor([letter_of(w) for w in side]) for side in sides]
    with torch.random.fork_rng():
        torch.manual_seed(42)
        probe = letter_probe(x[0], y[0], batch=64)
        z = [sae.encode(a) for a in x]
        latents = letter_latents(letter_probe(z[0], y[0], l1=.01, l2=1e-6), (z[0], y[0]), (z[1], y[1]))
    theirs = THEIRS['absorption']
    assert latents=={i: t['latents'] for i,t in enumerate(theirs.values())}
    assert f1_of(probe(x[1]).detach(), y[1])==pytest.approx([t['f1'] for t in theirs.values()])
    for i,t in enumerate(theirs.values()):
        if not t['words']: continue
        some = torch.stack([x_of[w] for w in t['words']])
        ours = absorbed(some, sae.encode(some), probe.weight[i].detach(), sae.W_dec, latents[i])
        assert ours.fraction.tolist()==pytest.approx(t['fraction'], abs=1e-4) and ours.full.tolist()==t['full']


def test_an_untrained_autoencoder_is_no_better_than_nonsense():
    "Of 20 with random directions at most one is above three others; one that has the labels as latents is above all"
    import numpy as np
    from steerlens.sae.judged import above, beside
    from steerlens.sae.probing import codes_of, few
    train,test,_ = parity.labelled()
    g,documents = torch.Generator().manual_seed(7), np.arange(4*60)//2 # two texts a document
    def probed(W):
        notes = {}
        few(codes_of(train, test, lambda x: (x@W.T-.3).relu()), (1,), notes=notes)
        return [(1/4, own) for own in notes[1].values()]
    def directions(): return torch.nn.functional.normalize(torch.randn(60, 24, generator=g), dim=1)
    null = [probed(directions()) for _ in range(3)]
    def better(W): return above(beside(probed(W), dict(turned=null), documents), 'turned')
    assert sum(better(directions()) for _ in range(20)) <= 1
    assert better(torch.eye(24))
