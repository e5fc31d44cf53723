"Investigations under fire: nobody there, nothing to ask, a kill, people who have decided, tokens that want to be more"
import json, re
import pytest
from steerlens.codes.backends import CodeStore
from steerlens.codes.store import OutOfRange
from steerlens.core import SteerlensError
from steerlens.explore import investigate as module
from steerlens.explore.investigate import Investigation, investigate, open_investigation
from steerlens.explore.labels import labels_of
from steerlens.explore.toy import KNOWN, toy_bench
from steerlens.explore.units import random_directions
from steerlens.subjects.inputs import Inputs

NASTY = '<script>alert(1)</script>|`x`\n**b** ![a](b)'
CALLS,GET = KNOWN['calls'], KNOWN['context'] # The first gives three hypotheses, the second one


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return toy_bench(tmp_path_factory.mktemp('toy')/'codes/toy')


@pytest.fixture(scope='module')
def found(toy): return investigate(toy, CALLS)


@pytest.fixture(scope='module')
def get(toy): return investigate(toy, GET)


def supported(i): return [l['says'] for l in i.facts['hypotheses'] if l['verdict']=='supported']


@pytest.mark.parametrize('feature', [25, -1, 'x', 1.5, True, None])
def test_whoever_is_not_there_is_refused_before_work(toy, feature, tmp_path):
    with pytest.raises(OutOfRange, match='expected a latent from 0 to 24'):
        investigate(toy, feature, folder=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_too_few_placebos_are_refused(toy):
    with pytest.raises(SteerlensError, match='n_random: 4; expected a whole number from 5 on'):
        investigate(toy, CALLS, n_random=4)


def test_a_dead_latent_has_no_hypotheses(toy):
    dead = investigate(toy, KNOWN['never'])
    assert dead.facts['said']=='latent 3: nothing found, since it never fires.' and not dead.facts['label']
    assert 'Fires in 0 of 400 rows' in dead.report


def test_rows_that_say_nothing(toy, tmp_path, monkeypatch):
    "A store whose rows have no column to look for anything in"
    bare = toy_bench(tmp_path/'codes/toy', 60)
    monkeypatch.setattr(bare, '_backgrounds', "rows without a column 'episode'", raising=False)
    none = investigate(bare, CALLS)
    assert 'nothing can be looked for in the rows of this store' in none.facts['said']


def test_a_subject_of_which_nothing_can_be_changed(toy, tmp_path, monkeypatch):
    "What is enriched is shown, and why it isn't tried"
    held = toy.held
    monkeypatch.setitem(vars(toy), 'held', Inputs(held.table, held.batches))
    none = investigate(toy, GET, folder=tmp_path)
    assert none.facts['said'].endswith('no value that is enriched can be changed here where it fires in training rows.')
    assert {why for _,why in none.facts['left']}=={'nothing here changes it'} and 'Not tried' in none.report
    assert 'offers no outputs' in none.facts['promotes']


def test_a_bench_that_does_not_know_its_activations(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, 'stored', None)
    with pytest.raises(SteerlensError, match='directions: a bench that does not know the activations'):
        investigate(toy, 'random', folder=tmp_path)


def test_a_killed_run_asks_no_experiment_twice(toy, get, tmp_path, monkeypatch):
    "After a kill at every experiment in turn it ends with the same report"
    asked,left,real = [], [1], module.run_experiment
    def dying(bench, feature, name, *args, **how):
        there = {p.name for p in (tmp_path/'killed').glob('*-*')}
        if left[0]==0: raise KeyboardInterrupt
        done = real(bench, feature, name, *args, **how)
        if done.id not in there: asked.append(done.id); left[0] -= 1
        return done
    monkeypatch.setattr(module, 'run_experiment', dying)
    for _ in range(9):
        left[0] = 1
        try: again = investigate(toy, GET, folder=tmp_path/'killed')
        except KeyboardInterrupt: assert not [*(tmp_path/'killed').glob('investigate-*')]
        else: break
    assert len(asked)==len({*asked})==1+len(get.facts['hypotheses'])
    assert again.report==get.report and not [*(tmp_path/'killed').rglob('.tmp*')]


def test_the_same_bytes(toy, get, tmp_path):
    again = investigate(toy, GET, folder=tmp_path)
    for name in ('report.md', 'investigation.json'):
        assert (again.folder/name).read_bytes()==(get.folder/name).read_bytes()
    assert open_investigation(again.folder).facts==get.facts
    assert investigate(toy, GET, folder=tmp_path, seed=1).id!=get.id


def test_every_figure_and_number_of_the_report_is_there(found):
    links = re.findall(r'\]\(([^)]+)\)', found.report)
    assert links and all((found.folder/link).exists() and link.endswith('.svg') for link in links)
    for l in found.facts['hypotheses']:
        assert l['id'] and l['id'].replace('_', r'\_').replace('-', r'\-') in found.report
    assert json.loads((found.folder/'investigation.json').read_text())==found.facts


def test_a_label_is_a_draft_with_evidence_and_overrules_nobody(toy, tmp_path):
    written = investigate(toy, GET, folder=tmp_path, label=True)
    labels = labels_of(CodeStore(toy.codes.folder))
    assert labels[GET]['status']=='draft' and labels[GET]['author']=='model:investigate'
    assert labels[GET]['evidence']==written.facts['label']['evidence'] and written.id in labels[GET]['evidence']
    labels.set(GET, 'ann', label='context get', status='accepted')
    refused = investigate(toy, GET, folder=tmp_path, label=True)
    assert refused.facts['written'].startswith('not written') and 'ann has decided' in refused.facts['written']
    assert labels_of(CodeStore(toy.codes.folder))[GET]['label']=='context get'
    assert 'a direction has no entry' in investigate(toy, 'random', folder=tmp_path, label=True).facts['written']


def nasty(x):
    "The same with tokens that somebody made to harm"
    if isinstance(x, dict): return {k: nasty(v) for k,v in x.items()}
    if isinstance(x, list): return [nasty(v) for v in x]
    return x.replace('call', NASTY) if isinstance(x, str) and not x.startswith(('family_sweep-', 'insertion-')) else x


def test_tokens_stay_text(found):
    bad = Investigation(found.id, 'latent 0', nasty(found.facts), found.folder)
    text,html = bad.report, bad._repr_html_()
    assert '<script>' not in text and '<script>' not in html and '&lt;script&gt;' in text
    assert '![a]' not in text and '**b**' not in text
    rows = [line for line in text.splitlines() if line.startswith('|')]
    bars = {len(re.findall(r'(?<!\\)\|', line)) for line in rows}
    assert bars=={6, 7} and '\n**b**' not in repr(bad)


def test_random_directions_find_nothing(toy, tmp_path):
    "Each picks hypotheses that suit it; the rate is counted by `benchmarks/investigate.py`"
    some = [investigate(toy, v, n_alike=0, folder=tmp_path) for v in random_directions(4, 13, 'nonsense')]
    assert sum(bool(supported(i)) for i in some) <= 1


def test_latents_with_a_meaning_find_it(found, get):
    assert 'it fires because tokens of the family “call” are there' in supported(found)
    assert supported(get)==['it fires because the context is “get”']
