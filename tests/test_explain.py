"Explanations under fire: nobody active, nothing to ask, other people's labels, texts that want to be more; the page"
import threading
from dataclasses import replace
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
import torch
from steerlens.commands.shared import listening
from steerlens.core import SteerlensError
from steerlens.explain.against import against, summary
from steerlens.explain.carried import asked, carried, changing, explained, without
from steerlens.explain.ranked import Change, Names, explain, keep, kept, names_of
from steerlens.explain.trace import trace, view
from steerlens.explore.bench import edited
from steerlens.explore.labels import labels_of
from steerlens.explore.toy import KNOWN, toy_bench
from steerlens.subjects.margins import lead
from test_dash import CHROMIUM, EVIL, browser, opened  # noqa: F401, the browser is a fixture


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return toy_bench(tmp_path_factory.mktemp('toy')/'codes/toy')


@pytest.fixture(scope='module')
def found(toy): return carried(toy, asked(toy, 40))


def test_attribution_is_a_slope(toy, found):
    "The margin after scaling a latent down a little, where no other rival comes up, is what attribution says"
    lines = asked(toy, 40)
    for p,line in list(zip(found, lines.to_dict('records')))[:10]:
        b, = toy.held.batches(pd.DataFrame([line]))
        for f,effect in zip(p.latents.tolist(), p.effects):
            def less(x, ctx):
                z = toy.sae.encode(x)
                return x-1e-3*z[...,[f]]*toy.sae.W_dec[f]
            m = toy.work.margin(b, edited(toy, b, less))
            assert p.ahead-float(m.ahead[0])==pytest.approx(1e-3*effect, abs=2e-5)


def test_nothing_switched_off_changes_nothing(toy):
    line = asked(toy, 40).iloc[0].to_dict()
    b, = toy.held.batches(pd.DataFrame([line]*3))
    clean = toy.work.margin(b, toy.subject.run(*b.args, **b.kwargs)).ahead.detach().numpy()
    assert np.array_equal(without(toy, line, [(), (), (KNOWN['never'],)])[0], clean)


def test_what_changes_it_is_true_and_none_of_it_is_spare(toy, found):
    changed = 0
    for p,line in zip(found, asked(toy, 40).to_dict('records')):
        c = changing(toy, line, p)
        if not c.latents: continue
        changed += 1
        sets = [c.latents, *(tuple(f for f in c.latents if f!=g) for g in c.latents)]
        ahead,instead = without(toy, line, [(), *sets])
        assert ahead[1] <= 0 and instead[1]==c.becomes and (ahead[2:] > 0).all()
    assert changed > 20


def test_nobody_active(toy, found, monkeypatch):
    none = replace(found[0], latents=np.array([], int), activations=np.array([]), effects=np.array([]))
    line = asked(toy, 40).iloc[0].to_dict()
    assert changing(toy, line, none)==Change((), '', 1)
    assert 'No latent is active' in explain(none, Names(none.whose)).said
    monkeypatch.setattr(toy.sae, 'b_enc', toy.sae.b_enc-100)
    p, = explained(toy, asked(toy, 1))
    assert not len(p.latents) and 'No latent is active' in str(explain(p, Names(p.whose)))
    with pytest.raises(SteerlensError, match='no latent speaks for any prediction'): against(toy, 5)


def test_no_held_out_inputs(toy, monkeypatch):
    monkeypatch.setattr(toy.held, 'table', toy.held.table.iloc[:0])
    with pytest.raises(SteerlensError, match='no held-out inputs'): asked(toy)
    with pytest.raises(SteerlensError, match='number of a held-out input'): trace(toy, 0)


def test_a_subject_that_does_not_say_what_comes_out(toy, monkeypatch):
    lines = asked(toy, 1)
    monkeypatch.setattr(toy.work, 'margin', None)
    for do in (lambda: carried(toy, lines), lambda: without(toy, lines.iloc[0].to_dict(), [()])):
        with pytest.raises(SteerlensError, match='does not say what its outputs come to'): do()


def test_numbers_that_are_none_are_refused(toy, found, monkeypatch):
    with pytest.raises(SteerlensError, match='NaN or infinite'):
        explain(replace(found[0], effects=found[0].effects*np.nan), Names(found[0].whose))
    def broken(batch, output, said=None, among=None): return lead(output*torch.nan, torch.zeros(len(output), dtype=int))
    monkeypatch.setattr(toy.work, 'margin', broken)
    with pytest.raises(SteerlensError, match='NaN or infinite'):
        explain(carried(toy, asked(toy, 1))[0], Names(found[0].whose))


def test_labels_of_another_autoencoder(toy, found, tmp_path):
    other = labels_of(toy_bench(tmp_path/'codes/other', 100).codes)
    other.set(0, 'ann', label='calls')
    for do in (lambda: explain(found[0], names_of(other)), lambda: trace(toy, 3, names_of(other))):
        with pytest.raises(SteerlensError, match='labels of another autoencoder') as e: do()
        assert '\n' not in str(e.value)
    keep(found, tmp_path/'found.jsonl')
    with pytest.raises(SteerlensError, match='labels of another'):
        explain(kept(tmp_path/'found.jsonl')[0], names_of(other))


@pytest.mark.parametrize('said,why', [('get: zebra', "token 'zebra': not known"),
                                      ('nowhere: call_1', "context 'nowhere': not known")])
def test_what_cannot_be_read_is_a_line(toy, said, why):
    with pytest.raises(SteerlensError, match=why): trace(toy, said)


def test_a_label_is_text(toy):
    p = trace(toy, 3).explanation.prediction
    names = Names(p.whose, {int(f): (EVIL, .9) for f in p.latents})
    shown = str(view(trace(toy, 3, names, sure=EVIL)))
    assert '<script' not in shown and '<img' not in shown and '&lt;script' in shown


def test_the_same_bytes_from_what_was_kept(toy, found, tmp_path):
    whole = explained(toy, asked(toy, 5))
    back = kept(keep(whole, tmp_path/'found.jsonl'))
    names = Names(whole[0].whose, {0: ('calls', .9)})
    assert [str(explain(p, names)) for p in back]==[str(explain(p, names)) for p in whole]
    assert keep(back, tmp_path/'again.jsonl').read_bytes()==(tmp_path/'found.jsonl').read_bytes()


def test_named_latents_beat_random_ones(toy):
    t = summary(against(toy, 100, k=2)).set_index('who')
    assert t.beaten_lo['alive'] > .8 and t.worth_lo['named'] > t.worth_hi['here']


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    from steerlens.dash.app import server
    desk = opened(tmp_path_factory.mktemp('trace')/'codes/toy/site/main')
    desk.labels().update({0: dict(label=EVIL)}, 'ann')
    made = server(desk, listening('127.0.0.1', 0))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield SimpleNamespace(desk=desk, url=f'http://127.0.0.1:{made.port}')
    made.shutdown()


@pytest.mark.skipif(not CHROMIUM, reason='no Chromium here')
def test_a_trace_in_the_browser(served, browser):  # noqa: F811
    tab = browser.new_page(viewport=dict(width=390, height=900), color_scheme='dark')
    said = []
    tab.on('pageerror', lambda e: said.append(str(e)))
    tab.goto(served.url+'/trace')
    tab.fill('#trace-text', 'get: call_2 loop_1')
    tab.click('#trace-run')
    tab.wait_for_selector('.whole')
    assert 'comes out' in tab.inner_text('.whole') and 'broken into' not in tab.title()
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390
    tab.click('.whole a[href^="/latent/"]')
    tab.wait_for_selector('#latent-card')
    tab.goto(served.url+'/trace')
    tab.fill('#trace-text', 'get: <b>zebra</b>')
    tab.click('#trace-run')
    tab.wait_for_selector('#trace-out .error')
    assert '<b>zebra' in tab.inner_text('#trace-out .error') and not said
