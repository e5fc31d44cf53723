"The studio's page in headless Chromium, as a visitor uses it, against the server that a user starts"
import json, re, shutil, subprocess, sys, time
from pathlib import Path
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
STEERLENS = Path(sys.executable).parent/'steerlens'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
for needed in ('fastapi', 'uvicorn', 'multipart', 'gymnasium'):
    pytest.importorskip(needed, reason=f'{needed} is not installed')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium here')
WALKER = 'embedded walker'


@pytest.fixture(scope='module')
def server():
    "Its address, and when it was started"
    began = time.monotonic()
    p = subprocess.Popen([STEERLENS, 'studio', '--port', '0'], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield re.search(r'http://\S+', p.stdout.readline())[0], began
    p.terminate()
    p.wait(20)


@pytest.fixture(scope='module')
def browser():
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield b
        b.close()


@pytest.fixture
def page(browser, server):
    "A new visitor, whose page must not complain of itself"
    context = browser.new_context(viewport=dict(width=1440, height=900))
    page = context.new_page()
    said = []
    page.on('pageerror', lambda e: said.append(str(e)))
    page.on('console', lambda m: said.append(m.text) if 'Content Security' in m.text else None)
    page.goto(server[0])
    yield page
    context.close()
    assert not said


def walker(page):
    "The embedded walker, with a latent chosen"
    page.click('#take-walker')
    page.wait_for_selector('#card:not([hidden])')


def short(page, seeds=2, steps=40):
    "Runs of a few seconds"
    page.click('#run-settings summary')
    page.fill('#n-seeds', str(seeds))
    page.fill('#steps', str(steps))


def run(page):
    page.click('#run')
    page.wait_for_selector('#result:not([hidden])', timeout=90_000)


def until(page, expression, seconds=20):
    "Ask until it is true; the page's own policy forbids `wait_for_function`"
    end = time.monotonic()+seconds
    while not page.evaluate(expression):
        assert time.monotonic()<end, expression
        page.wait_for_timeout(50)


def text(page, selector): return page.locator(selector).inner_text()
def now(page): return page.evaluate('[...document.querySelectorAll("video")].map(v => v.currentTime)')


def policy(path, **tensors):
    "A policy of the guide's shape"
    sizes = [17, 32, 32, 32, 6]
    state = {f'net.{2*i}.weight': torch.randn(o, n)*.3 for i,(n,o) in enumerate(zip(sizes, sizes[1:]))}
    torch.save(state | tensors, path)
    return path


def test_two_clicks_to_the_first_video(page, server):
    "From the server's start to four synchronous films in two clicks"
    page.click('#take-walker')
    page.wait_for_selector('#card:not([hidden])')
    page.click('#run')
    until(page, '[...document.querySelectorAll("video")].filter(v => v.currentTime > 0).length==4', 90)
    print(f'from the start of the server to four films: {time.monotonic()-server[1]:.1f} s')
    page.wait_for_timeout(1500)
    times = now(page)
    assert min(times) > .5 and max(times)-min(times) < .2
    page.click('#play')
    page.locator('#scrub').fill('2')
    page.wait_for_timeout(500)
    assert now(page) == pytest.approx([2]*4, abs=.1)
    assert re.search(r'This run really had latent \d+ at \+0\.\d+ on tap 5', text(page, '#applied'))
    assert page.locator('.film').count() == 4 and page.locator('.film.yours').count() == 1
    assert page.locator('#measures figure').count() == page.locator('#table tbody tr').count() == 8
    assert page.locator('#series figure').count() >= 3
    assert len(text(page, '#result-title')) > 20


def test_slider(page):
    walker(page)
    alpha = page.locator('#alpha')
    alpha.focus()
    before = float(page.input_value('#alpha-number'))
    page.keyboard.press('ArrowRight')
    assert float(page.input_value('#alpha-number')) == pytest.approx(before+.01)
    page.keyboard.press('End')
    assert page.input_value('#alpha-number')=='5' and alpha.get_attribute('aria-valuetext')=='alpha +5'
    page.wait_for_selector('#apply-line b')
    assert '+5 times latent' in text(page, '#apply-line')
    alpha.dblclick()
    assert page.input_value('#alpha-number') == '0'
    assert 'baseline alone' in text(page, '#run-plan')
    page.fill('#alpha-number', '-0.3')
    page.click('#apply')
    api.expect(page.locator('#apply-line')).to_contain_text('-0.3 times latent')
    page.fill('#gate-from', '9')
    page.fill('#gate-to', '3')
    page.click('#apply')
    api.expect(page.locator('#apply-error')).to_contain_text('the first must come before the end')


def test_latents(page):
    walker(page)
    shown = page.locator('.latent .value').all_inner_texts()
    sizes = [abs(float(x.replace('−', '-'))) for x in shown]
    assert sizes == sorted(sizes, reverse=True) and 'R²' in text(page, '#fit-line')
    page.select_option('#target', 'event:0')
    api.expect(page.locator('#fit-line')).to_contain_text('both feet')
    second = page.locator('.latent').nth(1)
    second.click()
    j = second.get_attribute('data-j')
    api.expect(page.locator('#card-title')).to_have_text(f'Latent {j}')
    assert page.input_value('#latent') == j and second.get_attribute('aria-pressed') == 'true'
    for part in ('trace', 'events', 'drives', 'neighbours'): assert page.get_by_test_id(part).count() == 1
    page.get_by_test_id('neighbours').locator('button').first.click()
    api.expect(page.locator('#card-title')).not_to_have_text(f'Latent {j}')
    page.click('[data-testid=moments] summary')
    until(page, 'document.querySelector(".frames img")?.naturalWidth > 0')


def test_network_glows(page):
    walker(page)
    drawn = 'document.getElementById("net").toDataURL().slice(-4000)'
    first = page.evaluate(drawn)
    until(page, f'{drawn} != {json.dumps(first)}')
    page.locator('#network-title').click()
    page.keyboard.press(' ')
    assert page.get_attribute('#net-play', 'aria-pressed') == 'false'
    page.locator('#net-scrub').fill('500')
    api.expect(page.locator('#net-time')).to_contain_text('step')


def test_wrong_artifacts(page, tmp_path):
    "What the guide calls troubleshooting: each is one line, with what to do"
    walker(page)
    page.click('#load-sae-open')
    page.fill('#artifacts-dir', 'nowhere')
    page.click('#load-sae')
    api.expect(page.locator('#sae-error')).to_contain_text('SAE not found')
    page.fill('#artifacts-dir', '../..')
    page.click('#load-sae')
    api.expect(page.locator('#sae-error')).to_contain_text('below the root')
    page.fill('#artifacts-dir', 'weights/walker/sae')
    page.select_option('#tap-index', '3')
    page.click('#load-sae')
    api.expect(page.locator('#sae-error')).to_contain_text('tap 5 fits')
    page.click('text=Use tap 5')
    api.expect(page.locator('#latents-error')).to_contain_text('Need SAE + cached data')
    assert page.locator('#latent option').count() == 256 # to be pushed, if not interpreted


def test_uploads(page, tmp_path):
    (tmp_path/'bad.pt').write_bytes(b'no tensors')
    page.set_input_files('#policy-file', tmp_path/'bad.pt')
    api.expect(page.locator('#start-error')).to_contain_text('bad.pt')
    name = '<img src=x onerror=alert(1)>.pt'
    page.set_input_files('#policy-file', dict(name=name, mimeType='', buffer=policy(tmp_path/'p.pt').read_bytes()))
    api.expect(page.locator('#model-line')).to_contain_text(name)
    assert '17 → 32 → 32 → 32 → 6' in text(page, '#model-line')
    assert 'gelu' in page.input_value('#assumed-activation')
    page.select_option('#assumed-activation', 'tanh')
    api.expect(page.locator('#model-line')).to_contain_text('tanh')
    assert page.locator('#sae-form').is_visible() # the next thing to do


def test_drop(page, tmp_path):
    "Files may be dropped anywhere"
    data = list(policy(tmp_path/'p.pt').read_bytes())
    dropped = page.evaluate_handle("""data => { const t = new DataTransfer()
        t.items.add(new File([new Uint8Array(data)], 'dropped.pt')); return t }""", data)
    page.dispatch_event('#drop', 'drop', dict(dataTransfer=dropped))
    api.expect(page.locator('#model-line')).to_contain_text('dropped.pt')


def test_raw_weights(page):
    walker(page)
    page.click('#tab-weights')
    page.select_option('#key', 'out.bias')
    api.expect(page.locator('#heat-note')).to_contain_text('4;')
    page.fill('#edit-i', '2')
    page.select_option('#edit-op', 'set')
    page.fill('#edit-value', '0.5')
    page.click('#edit-apply')
    api.expect(page.locator('#edits-line')).to_contain_text('is 0.5')
    api.expect(page.locator('#sae-line')).to_contain_text('with 1 weight edit')
    page.select_option('#key', 'layers.1.0.weight')
    page.fill('#all-value', '0.9')
    page.click('#all-apply')
    api.expect(page.locator('#edits-line')).to_contain_text('4096 weights')
    page.fill('#edit-i', '99')
    page.click('#edit-apply', force=True)
    short(page)
    run(page)
    assert 'really had 2 weight edits' in text(page, '#applied')
    assert page.locator('.film').count() == 2
    api.expect(page.locator('#hints')).to_contain_text('too early to speak of gait')
    page.click('#reset')
    api.expect(page.locator('#edits-line')).to_contain_text('as they were uploaded')
    with page.expect_download() as d: page.click('#download-safetensors')
    assert d.value.suggested_filename.endswith('.safetensors')


def test_models(page):
    walker(page)
    page.reload() # the address keeps the model
    page.wait_for_selector('#card:not([hidden])')
    page.click('#models-button')
    page.click('#new-model')
    walker(page)
    page.click('#models-button')
    api.expect(page.locator('#models li')).to_have_count(2)
    page.locator('#models li').first.get_by_text('Open').click()
    page.wait_for_selector('#card:not([hidden])')
    page.click('#models-button')
    for left in (1, 0):
        page.locator('#models').get_by_text('Delete').first.click()
        api.expect(page.locator('#models [data-testid]')).to_have_count(left)
    api.expect(page.locator('#start')).to_be_visible()


def test_cancel(page):
    walker(page)
    short(page, 200, 2000)
    page.click('#run')
    page.click('[data-testid=cancel]')
    api.expect(page.locator('#run-job')).to_be_empty()
    assert page.locator('#result').is_hidden()
    short_again = page.locator('#n-seeds')
    short_again.fill('500')
    page.click('#run')
    api.expect(page.locator('#run-error')).to_contain_text('200')


def answered(page, kind, result):
    "Let a job have been done at once"
    job = dict(run_id='canned', kind=kind, state='done', progress=1, message='', result=result)
    page.route(f'**/model/*/{kind}', lambda r: r.fulfill(json=dict(run_id='canned')))
    told = dict(content_type='text/event-stream', body=f'data: {json.dumps(job)}\n\n')
    page.route('**/run/canned/events', lambda r: r.fulfill(**told))


def test_a_target_has_to_be_one(page):
    walker(page)
    page.click('#find-alpha-open')
    for target in ('', '0'):
        page.fill('#cal-target', target)
        page.click('#find-alpha')
        api.expect(page.locator('#apply-error')).to_contain_text('above or below zero')
    page.click('#tab-weights')
    page.click('#tab-latent')
    api.expect(page.locator('#apply-error')).to_be_empty()


def test_what_fells_the_walker_is_said_of_every_arm(page):
    walker(page)
    page.fill('#alpha-number', '3')
    short(page, 3, 200)
    run(page)
    assert re.match(r'Too much: .*baseline in \d+ %.*placebo in \d+ %', text(page, '#result-title'))
    hints = text(page, '#hints')
    assert 'too early to speak of gait' in hints and 'Nothing is in the way' not in hints
    assert 'Filmed is seed 0, in which' in text(page, '#filmed')
    page.click('#half-alpha')
    until(page, 'document.getElementById("alpha-number").value=="1.5"')


def test_a_wrong_activation_has_a_button(page, tmp_path):
    from steerlens.app.policies import embedded
    p = embedded()
    obs = torch.randn(400, 32)
    state = dict(W_enc=torch.eye(64), W_dec=torch.eye(64))
    sae = dict(sae_state=state, d_in=64, d_latent=64, k=64, tap_index=5)
    files = dict(walker_sae=sae, cached_obs=obs, tapped_activations=p.passes(obs)[5])
    for name,x in files.items(): torch.save(x, tmp_path/f'{name}.pt')
    torch.save({k: p.weights(k) for k in p.keys}, tmp_path/'policy.pt')
    page.set_input_files('#policy-file', tmp_path/'policy.pt')
    page.set_input_files('#sae-files', [tmp_path/f'{name}.pt' for name in files])
    api.expect(page.locator('#sae-error')).to_contain_text('say activation=relu at upload')
    page.click('text=Upload again as relu')
    api.expect(page.locator('#fit-line')).to_contain_text('Latents predict')


def test_find(page):
    "An alpha is found, and latents; both are taken over"
    walker(page)
    side = dict(measure='tilt', unit='rad', difference=.1, lo=.05, hi=.2)
    held = dict(effect=.3, lo=.1, hi=.5, n=24, beyond_placebo=True)
    tried = [dict(alpha=a, effect=e) for a,e in ((.05, .1), (-.05, -.2), (.12, .36))]
    found = dict(alpha=.12, target=.35, measure='speed', effect=.36, held_out=held, steps=300, too_much=False)
    answered(page, 'calibrate', found | dict(side_effects=[side], evaluations=tried))
    page.click('#find-alpha-open')
    page.click('#find-alpha')
    api.expect(page.locator('#calibrate-result')).to_contain_text('tilt +0.1 rad')
    assert page.input_value('#alpha-number') == '0.12'
    arms = {a: dict(difference=d, lo=d-.1, hi=d+.1, fell=0) for a,d in (('plus', .5), ('minus', -.4), ('placebo', 0))}
    found = dict(feature_idx=17, measure='speed', unit='lengths/s', alpha=.2, q=.01, **arms)
    answered(page, 'search', dict(found=[found], walked=[found], tried=1024, n=40))
    page.click('#find-latents-open')
    page.click('#find-latents')
    api.expect(page.locator('#search-result')).to_contain_text('1 latent moves')
    page.get_by_test_id('take-17').click()
    api.expect(page.locator('#card-title')).to_have_text('Latent 17')
    assert page.input_value('#alpha-number') == '0.2' and page.input_value('#latent') == '17'


TEXTS = '''[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
  [...e.childNodes].some(n => n.nodeType==3 && n.data.trim()))'''

SMALL = f'''() => {TEXTS}.filter(e => parseFloat(getComputedStyle(e).fontSize) < 12)
  .map(e => e.outerHTML.slice(0, 80))'''

FAINT = '''() => {
  const rgb = c => (c.match(/[\\d.]+/g) ?? []).map(Number)
  const part = x => (x /= 255) <= .03928 ? x/12.92 : ((x+.055)/1.055)**2.4
  const light = ([r,g,b]) => .2126*part(r) + .7152*part(g) + .0722*part(b)
  const solid = e => rgb(getComputedStyle(e).backgroundColor).length==3
  const under = e => e ? solid(e) ? rgb(getComputedStyle(e).backgroundColor) : under(e.parentElement) : [255,255,255]
  const contrast = e => {
    const [a,b] = [light(rgb(getComputedStyle(e).color)), light(under(e))].sort((x,y) => y-x)
    return (a+.05)/(b+.05)
  }
  const judged = TEXTS.filter(e => !e.closest('.skip, option, svg, .plot, #net-tip'))
  return judged.filter(e => contrast(e) < 4.5).map(e => e.outerHTML.slice(0, 80))
}'''.replace('TEXTS', TEXTS)


@pytest.mark.parametrize('width', (390, 900, 1440))
@pytest.mark.parametrize('theme', ('light', 'dark'))
def test_looks(browser, server, width, theme):
    "Nothing hangs out, no text is small or faint, and nothing jumps while a latent is chosen"
    context = browser.new_context(viewport=dict(width=width, height=900), color_scheme=theme, reduced_motion='reduce')
    page = context.new_page()
    page.goto(server[0])
    walker(page)
    short(page)
    run(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert page.evaluate(SMALL) == [] and page.evaluate(FAINT) == []
    assert page.get_attribute('#play', 'aria-pressed') == 'false' # motion is asked for, not forced
    page.click('#tab-weights')
    assert page.evaluate('document.documentElement.scrollWidth') <= width and page.evaluate(FAINT) == []
    context.close()


def test_labels(page):
    "Every control has a name, and nothing is inline"
    walker(page)
    nameless = '''() => [...document.querySelectorAll('button, input, select, canvas, video, progress')]
      .filter(e => !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML)'''
    assert page.evaluate(nameless) == []
    html = (ROOT/'studio'/'index.html').read_text()
    assert not re.search(r'\son\w+=|\sstyle=|<style|<script(?![^>]*src)|https?://', html)


def test_a_server_that_is_gone(page):
    page.route('**/embedded', lambda r: r.abort())
    page.click('#take-walker')
    api.expect(page.locator('#start-error')).to_contain_text('does not answer')


def test_another_model_ends_a_run(page):
    walker(page)
    short(page, 200, 2000)
    page.click('#run')
    page.wait_for_selector('[data-testid=cancel]')
    page.click('#home')
    walker(page)
    page.fill('#n-seeds', '2')
    page.fill('#steps', '40')
    run(page)
    assert 'seeds 0 to 1' in text(page, '#applied')


def test_a_model_that_is_deleted_during_its_run_says_so(page):
    walker(page)
    short(page, 200, 2000)
    page.click('#run')
    page.wait_for_selector('[data-testid=cancel]')
    page.evaluate("fetch(`/model/${location.hash.slice(1)}`, {method: 'DELETE'})")
    api.expect(page.locator('#run-error')).to_contain_text('no such model')
    assert not page.evaluate('net.playing')


def test_a_blank_alpha_is_not_run(page):
    walker(page)
    short(page)
    page.fill('#alpha-number', '')
    page.click('#run')
    api.expect(page.locator('#run-error')).to_contain_text('blank')
