"What a trial of a language model is: the same text whatever runs beside it, and said in one line where it can't be"
import pytest
import torch
from steerlens.core import SteerlensError, root
from steerlens.steer.contrasts import contrast, contrasted
from steerlens.steer.edits import Add, Intervention, Steps, intervened
from steerlens.steer.trials import Lab
from steerlens.subjects import nano_lm
from steerlens.subjects.continuations import Trait, Writer, continued, noise_of
from steerlens.subjects.settle import settle

SITE = 'blocks.1.hook_resid_post'


@pytest.fixture(scope='module')
def lm(): return nano_lm.subject()


def pushes(n, alpha=40.):
    push = Intervention(SITE, 'all', Add(torch.ones(256)/16, alpha))
    return [push.placebo(i) for i in range(n)]


def test_one_worker_or_two_the_same_bytes():
    found = []
    for workers in (1, 2):
        with Lab(settle('nano_lm'), workers, chunk=4) as lab:
            found.append(lab.run(lab.steering.trials('code', 8, 300), pushes(8)))
    assert found[0]==found[1] and len({c.text for c in found[0]})>1


def test_a_text_does_not_depend_on_its_batch(lm):
    "Alone or among others, whose prompts are longer, each under an edit of its own"
    how = nano_lm.steering()
    trials = [t for c in ('method', 'code') for t in how.trials(c, 4, 300)]
    edits = pushes(8)
    with intervened(lm, edits): together = how.run(lm, trials)
    for t,e,c in zip(trials, edits, together):
        with intervened(lm, [e]): alone, = how.run(lm, [t])
        assert alone.text==c.text


def test_an_edit_of_nothing_writes_the_same(lm):
    how = nano_lm.steering()
    trials = how.trials('prose', 6, 300)
    with intervened(lm, pushes(6, 0.)): edited = how.run(lm, trials)
    assert [c.text for c in edited]==[c.text for c in how.run(lm, trials)]


def test_an_edit_applies_to_each_token_once(lm):
    "From the first new token on, which the prompt's last position decides; and to that one alone if asked"
    how = nano_lm.steering()
    trials,push = how.trials('code', 3, 300), Add(torch.ones(256)/16, 400.).placebo(0)
    with intervened(lm, [Intervention(SITE, 'all', push)]*3) as made: pushed = how.run(lm, trials)
    assert made.n_edits.tolist()==[how.run.__self__.n]*3
    with intervened(lm, [Intervention(SITE, 'all', push, Steps(end=1))]*3) as made: once = how.run(lm, trials)
    assert made.n_edits.tolist()==[1]*3
    assert [c.ids[0] for c in once]==[c.ids[0] for c in pushed] and [c.ids for c in once]!=[c.ids for c in pushed]


def test_seeds_decide(lm):
    how = nano_lm.steering()
    one,two = how.trials('code', 1, 0)*2 + how.trials('code', 1, 12), how.trials('code', 12, 0)
    texts = [c.text for c in how.run(lm, one)]
    assert one[0].text==one[2].text and texts[0]==texts[1]!=texts[2]
    assert len({t.text for t in two})==12


def test_nan_logits_are_one_line(lm):
    bad = Intervention(SITE, 'all', Add(torch.full((256,), 1e38)))
    with pytest.raises(SteerlensError, match='token 1 of 2: NaN or infinite logits') as e, intervened(lm, [bad]):
        continued(lm, [[0, 5]], noise_of(0, 2)[None], .7)
    assert '\n' not in str(e.value)


def test_a_contrast_with_an_empty_side_is_refused(lm, tmp_path):
    "Nothing to say on one side; or all of it held out"
    with pytest.raises(SteerlensError, match='trait code/prose: pairs with an empty side'):
        Trait('code', 'prose', [('x = 1', '')], [('x', 'The')], nano_lm.code_or_prose)
    how = nano_lm.steering()
    acts = contrasted(lm, how, type('', (), dict(folder=tmp_path)), [SITE], tmp_path)
    with pytest.raises(SteerlensError, match="no rows of 'verse' in stream 'all'"):
        contrast(how, acts, 'code', 'verse', 'paired', ['all'])


def test_examples_are_harvested_once_and_pairs_stay_together(lm, tmp_path):
    how,phase_1 = nano_lm.steering(), type('', (), dict(folder=tmp_path))
    acts = contrasted(lm, how, phase_1, [SITE], tmp_path)
    written = (acts.folder/'catalog.json').stat().st_mtime_ns
    assert contrasted(lm, how, phase_1, [SITE], tmp_path).folder==acts.folder
    assert (acts.folder/'catalog.json').stat().st_mtime_ns==written
    groups,splits = how.examples(lm).groups, acts.catalog['splits']
    train,held = ({groups[e] for e in splits[s]} for s in ('train', 'validation'))
    assert held and not train & held
    rows = acts.rows('all')
    assert rows.position.min()==1 and rows.token.notna().all() # neither an attention sink nor padding
    assert set(rows.condition)==set(how.conditions)


GARBAGE = ['', ' ', '\n\n', '+'*40, '()'*20, '\ufffd'*9, '1 2 3 4 5 6 7 8 9']


@pytest.mark.parametrize('text', GARBAGE)
def test_a_measure_says_nothing_of_garbage(text):
    assert nano_lm.code_or_prose(text) is None and nano_lm.function_or_method(text) is None


def test_the_same_word_for_ever_is_broken(lm):
    "It surprises nobody, so surprise alone would let it pass"
    trait = Trait('code', 'prose', [('a', 'b')], [('x', 'The')], nano_lm.code_or_prose)
    writer = Writer([trait], root()/nano_lm.WEIGHTS)
    ids = writer.ids('the'*40)[1:33]
    loop,nothing = writer.ended('The', ids), writer.ended('The', [])
    how = writer.steering()
    how.reread(lm, [loop, nothing])
    assert loop.broken and loop.fresh < writer.limits['fresh'] and nothing.broken
    assert {how.outcome(c, 'code', 'prose') for c in (loop, nothing)}=={'neither'}
