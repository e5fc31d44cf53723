"The dashboard: what it says where files break or change under it, and a walk through it in headless Chromium"
import json, shutil, threading, time, urllib.error, urllib.request
from types import SimpleNamespace
import numpy as np, pandas as pd
import pytest
from steerlens.codes.statistics import statistics
from steerlens.commands.shared import listening
from steerlens.explain.human import make_form
from steerlens.explore.toy import KNOWN, toy_bench

pytest.importorskip('dash', reason='dash is not installed')
from steerlens.dash.app import server, shown
from steerlens.dash.desk import Desk
from steerlens.dash.find import Asked, rows_of
from steerlens.dash.label import history, save, told

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
EVIL = '<script>document.title="broken into"</script><img src=x onerror="document.title=1">'
CALLS = KNOWN['calls']


def opened(folder):
    "The toy's codes on a desk, with its subject and its autoencoder"
    bench = toy_bench(folder, 200)
    statistics(bench.codes)
    desk = Desk(folder, author='ann')
    now = desk.open
    now.bench = bench
    now.sae = now.deck.sae = bench.sae
    return desk


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    desk = opened(tmp_path_factory.mktemp('dash')/'codes/toy/site/main')
    desk.labels().update({5: dict(label=EVIL), 6: dict(label='loops')}, 'model:template')
    made = server(desk, listening('127.0.0.1', 0))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield SimpleNamespace(desk=desk, url=f'http://127.0.0.1:{made.port}')
    made.shutdown()


def page(desk, path): return str(shown(desk, path, '')[0])


def called(url, body, **headers):
    "Status of a POST"
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers | {'Content-Type': 'application/json'})
    try: return urllib.request.urlopen(asked).status
    except urllib.error.HTTPError as e: return e.code


def test_only_its_own_pages_may_call_it(served):
    url = served.url+'/_dash-update-component'
    assert called(url, {}, Origin='http://evil.example')==403
    assert called(url, {}, **{'Sec-Fetch-Site': 'cross-site'})==403
    assert called(url, {}, Host='evil.example')==403
    assert called(url, {'output': 'x'*2**21}, Origin=served.url)==413
    ask = dict(output='..page.children...top.children...fault.children..', changedPropIds=['url.pathname'],
               outputs=[dict(id=i, property='children') for i in ('page', 'top', 'fault')],
               inputs=[dict(id='url', property=p, value=v) for p,v in (('pathname', '/'), ('search', ''))])
    assert called(url, ask, Origin=served.url)==200


def test_what_is_no_address_is_a_line(served):
    for path,said in (('/latent/99', '0 to 24'), ('/latent/-1', '0 to 24'), ('/latent/٣', '0 to 24'), ('/x', 'no such'),
                      ('/compare/1/99', '0 to 24')):
        assert said in page(served.desk, path), path


def test_labels_that_break_and_come_back(tmp_path):
    desk = opened(tmp_path/'codes/toy/site/main')
    labels = desk.labels()
    labels.set(CALLS, 'ann', label='counts calls')
    whole = labels.file.read_bytes()
    labels.file.write_bytes(whole[:40])
    for path in ('/', f'/latent/{CALLS}', '/compare/0/1', '/map', '/runs'): assert 'latent' in page(desk, path)
    assert 'not whole JSON' in page(desk, f'/latent/{CALLS}') and 'not whole JSON' in page(desk, '/queue')
    assert labels.file.read_bytes()==whole[:40]
    labels.file.write_bytes(whole)
    assert 'counts calls' in page(desk, '/')


def test_two_editors_and_a_third_by_hand(tmp_path):
    desk = opened(tmp_path/'codes/toy/site/main')
    seen = told(desk.labels()[3]) | dict(revision=0)
    save(desk, 3, seen, seen | dict(label='never fires'), 'ann')
    again,said = save(desk, 3, seen, seen | dict(label='rare'), 'bob')
    assert 'never fires' in said and desk.labels()[3]['label']=='never fires'
    file = desk.labels().file
    file.write_text(file.read_text().replace('"label": "never fires", "author"', '"label": "by hand", "author"'))
    _,said = save(desk, 3, again, again | dict(label='rare'), 'bob')
    assert 'by hand' in said and desk.labels()[3]['label']=='by hand'


def test_a_store_that_was_built_again_is_another_one(tmp_path):
    folder = tmp_path/'codes/toy/site/main'
    desk = opened(folder)
    first = desk.card(CALLS).data['often']['n']
    shutil.rmtree(folder)
    assert 'no such folder' in page(desk, '/') # gone, and said so
    toy_bench(folder, 100)
    assert desk.card(CALLS).data['often']['n'] < first and 'of 25 latents' in page(desk, '/')
    assert desk.open.bench is None


def test_an_experiment_that_fails_or_is_stopped(served):
    desk = served.desk
    for params,said in ((dict(family='zebra'), 'zebra'), (dict(n=5), 'no family'), (dict(family='call', n='x'), 'int')):
        job = desk.ask(CALLS, 'family_sweep', params)
        while job.state=='running': time.sleep(.01)
        assert job.state=='failed' and said in job.said
    job = desk.ask(CALLS, 'ablation', {})
    job.stop.set()
    while job.state=='running': time.sleep(.01)
    assert job.state=='stopped' and not list(desk.folder.parents[3].glob('explore/**/ablation*'))


def test_a_page_holds_a_page_and_nothing_that_runs(served):
    desk = served.desk
    assert rows_of(desk, Asked()).count('data-row')==25
    for html in (rows_of(desk, Asked('onerror')), desk.card(5).fragment(), history(desk, 5)):
        assert '&lt;script&gt;' in html and '<script' not in html and '<img' not in html


@pytest.fixture
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if not CHROMIUM: pytest.skip('no Chromium here')
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield b
        b.close()


def visitor(browser, url, width=1280, scheme='light'):
    "A page that notes its complaints"
    tab = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
    tab.said = []
    tab.on('pageerror', lambda e: tab.said.append(str(e)))
    tab.on('console', lambda m: tab.said.append(m.text) if m.type=='error' else None)
    tab.on('request', lambda r: tab.said.append(r.url) if not r.url.startswith((url, 'data:', 'blob:')) else None)
    tab.goto(url)
    tab.wait_for_selector('#page [data-row]')
    return tab


POINT = '''latent => { // where it is on the map, in pixels
  const plot = document.querySelector('.js-plotly-plot'), box = plot.getBoundingClientRect()
  const {x, y} = plot._fullData[0], {xaxis, yaxis} = plot._fullLayout
  const at = (axis, value) => axis._offset + axis.l2p(value)
  return [box.x+at(xaxis, x[latent]), box.y+at(yaxis, y[latent])] }'''


def test_search_open_sweep_label_reload_compare(browser, served):
    tab = visitor(browser, served.url)
    tab.keyboard.press('/')
    tab.keyboard.type('onerror')
    tab.wait_for_selector('text=1 to 1 of 1 latent')
    assert EVIL in tab.inner_text('[data-row]')
    tab.fill('#find-text', str(CALLS))
    tab.wait_for_selector(f'[data-row] >> nth=0 >> a:text-is("{CALLS}")')
    tab.keyboard.press('Enter')
    tab.wait_for_selector('h1:text-is("Latent 0")')
    tab.select_option('#ask-name', 'family_sweep')
    tab.select_option('[id*="family"]', 'call')
    tab.click('#ask-run')
    tab.wait_for_selector('.result img', timeout=60_000)
    assert '‘call’'.strip('‘’') in tab.inner_text('.result')
    assert tab.evaluate('fetch(document.querySelector(".result img").src).then(r => r.status)')==200
    tab.fill('#label-label', 'counts calls')
    tab.click('#label-save')
    tab.wait_for_selector('#label-said >> text=saved')
    served.desk.labels().set(CALLS, 'bob', label='number of calls') # somebody else, meanwhile
    tab.fill('#label-label', 'calls')
    tab.click('#label-save')
    tab.wait_for_selector('#label-said .error >> text=number of calls')
    tab.reload()
    tab.wait_for_selector('.label:has-text("number of calls")')
    assert tab.input_value('#label-label')=='number of calls' and tab.locator('.result').count()==1
    tab.keyboard.press('c')
    tab.fill('#compare-b', str(KNOWN['size']))
    tab.click('#compare-go')
    tab.wait_for_selector('text=0 and 4 fire together')
    assert tab.locator('article').count()==2
    tab.go_back()
    tab.keyboard.press('4')
    tab.wait_for_selector('#queue-accept')
    tab.keyboard.press('a')
    tab.wait_for_selector('#queue-said >> text=accepted')
    tab.click('text=look for them')
    tab.wait_for_selector('#queue-job >> text=is done')
    tab.click('#queue-pairs >> text="the same"')
    tab.wait_for_selector('#queue-pairs >> text=noted')
    tab.keyboard.press('3')
    tab.wait_for_selector('.js-plotly-plot canvas')
    tab.mouse.click(*tab.evaluate(POINT, 7))
    tab.wait_for_selector('h1:text-is("Latent 7")')
    assert tab.said==[]
    tab.context.set_offline(True) # as if the server were gone
    tab.click('#label-save')
    tab.wait_for_selector('#gone >> text=nothing was kept')
    tab.context.set_offline(False)
    tab.click('#label-save')
    tab.wait_for_selector('#gone', state='hidden')


def test_rating_blind_with_two_people_and_a_reload(browser, served):
    said = pd.DataFrame(dict(context=['if', EVIL, 'def f', 'x ='], said=['x', 'in', '(', '1'], document=range(4)))
    form = make_form(served.desk.labels().file.parent/'forms/first', said, dict(ranked=[f'why {i}' for i in range(4)]))
    tab = visitor(browser, served.url)
    tab.goto(served.url+'/rate')
    for rater,n in (('cleo', 3), ('dan', 1)):
        tab.fill('#rate-author', rater)
        tab.wait_for_selector('#rate-view >> text=0 of 8 rated')
        tab.evaluate('document.activeElement.blur()')
        for i in range(n):
            tab.keyboard.press('d')
            tab.wait_for_selector(f'#rate-view >> text={i+1} of 8 rated')
    tab.reload()
    tab.wait_for_selector('#rate-view >> text=1 of 8 rated')
    assert not any(word in tab.content() for word in ('ranked', 'placebo'))
    t = form.ratings()
    assert (t.groupby('rater').size().to_dict(), {*t.rating})==(dict(cleo=3, dan=1), {3})
    assert {*t.item[t.rater=='cleo']}=={*form.order('cleo')[:3]}
    assert tab.said==[]


def test_on_a_phone_in_the_dark(browser, served):
    tab = visitor(browser, served.url, 390, 'dark')
    for path in ('/', '/latent/5', '/compare/0/4', '/queue', '/rate', '/runs'):
        tab.goto(served.url+path)
        tab.wait_for_selector('#page section')
        assert tab.evaluate('document.documentElement.scrollWidth')==390, path
    assert tab.evaluate('getComputedStyle(document.body).backgroundColor')=='rgb(16, 18, 22)'
    tab.click('#theme')
    assert tab.evaluate('getComputedStyle(document.body).backgroundColor')=='rgb(246, 247, 249)'
    tab.keyboard.press('?')
    assert 'next latent' in tab.inner_text('#help')
    assert tab.said==[] and tab.title()=='Runs · steerlens'
