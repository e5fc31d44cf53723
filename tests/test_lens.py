"Tuned lenses that are killed in training, or meet what doesn't belong to them"
import signal
import pytest, torch
from steerlens.core import SteerlensError, root
from steerlens.lens import tuned
from steerlens.lens.tuned import TunedLens, Tuning, load_tuned, save_tuned, tune
from steerlens.sae import loop
from steerlens.subjects import nano_lm
from steerlens.subjects.hf import as_subject
from steerlens.subjects.lm import batches
from steerlens.subjects.text import tokenize
from conftest import killed

SITES = ['blocks.0.hook_resid_pre', 'blocks.0.hook_resid_post', 'blocks.1.hook_resid_post']


def model(**kw): return as_subject(nano_lm.blank(width=32, layers=2, heads=2, **kw))


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    "Windows to learn from, and to choose by"
    folder,weights = tmp_path_factory.mktemp('tokens'), root()/nano_lm.WEIGHTS
    tokens = tokenize(sorted((root()/'tests').glob('test_*.py'))[:8], weights, folder, 'tests', 'Apache-2.0')
    return [batches(tokens, weights, 32, n, 8, documents=d) for n,d in ((16, range(5)), (8, range(5, 8)))]


def trained(text, folder):
    torch.set_num_threads(1)
    subject = model()
    lens = TunedLens(subject, SITES)
    tune(lens, subject, *text, folder, Tuning(epochs=2, checkpoint=2))
    save_tuned(lens, folder)


MOMENTS = (tuned._Tuning, 'update'), (tuned, 'save_file'), (loop, 'write_json'), (loop, '_tidy')


def test_killed_anywhere_and_the_same_bytes(text, tmp_path):
    trained(text, tmp_path/'whole')
    want = (tmp_path/'whole'/'lens.safetensors').read_bytes()
    for after in (4, 8):
        folder = tmp_path/str(after)
        assert killed(lambda: trained(text, folder), MOMENTS, after)==-signal.SIGKILL
        trained(text, folder)
        assert (folder/'lens.safetensors').read_bytes()==want, f'killed before call {after}'


def test_others_are_refused(text, tmp_path):
    subject = model()
    save_tuned(TunedLens(subject, SITES), tmp_path)
    load_tuned(tmp_path, subject)
    with pytest.raises(SteerlensError, match='vocabulary 2048; expected 1000'): load_tuned(tmp_path, model(vocab=1000))
    with pytest.raises(SteerlensError, match='use the model that it was'): load_tuned(tmp_path, model(seed=1))
    file = tmp_path/'lens.safetensors'
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(SteerlensError, match='lens.safetensors is not what was written'): load_tuned(tmp_path, subject)


def test_a_model_that_says_nonsense_is_refused_before_its_lens_is(text):
    subject = model()
    lens = TunedLens(subject, SITES)
    before = [p.clone() for p in lens.parameters()]
    subject.model.transformer.h[0].mlp.c_fc.weight.data[0] = float('nan')
    lens.of = tuned.belongs_to(subject, SITES, 'all')
    with pytest.raises(SteerlensError, match='NaN or infinite'): tune(lens, subject, *text, None)
    assert all(torch.equal(a, b) for a,b in zip(before, lens.parameters()))


def test_weights_are_as_they_were(text):
    subject = model()
    needed = [p.requires_grad for p in subject.model.parameters()]
    tune(TunedLens(subject, SITES), subject, *text, None, Tuning(epochs=1))
    assert [p.requires_grad for p in subject.model.parameters()]==needed
    assert all(p.grad is None for p in subject.model.parameters())
