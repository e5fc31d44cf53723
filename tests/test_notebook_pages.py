"`browse` and `play` in a real JupyterLab in headless Chromium: run, used, saved, and opened again where no kernel runs"
import json, os, re, secrets, shutil, subprocess, sys, time
from pathlib import Path
from urllib.request import Request, urlopen
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
for needed in ('anywidget', 'jupyterlab', 'tokenizers'):
    pytest.importorskip(needed, reason=f'{needed} is not installed')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium here')

TOKEN = secrets.token_hex(16)
CELLS = '''
import numpy as np, pandas as pd, torch
from scipy import sparse
from steerlens.codes.backends import CodeStore
from steerlens.codes.statistics import statistics
from steerlens.codes.store import write_codes
words = np.array(['return', '<script>hacked=1</script>', 'if', ' the'])[np.arange(400)%4]
x = np.random.default_rng(0).gamma(2, 1, (400, 30))*(np.random.default_rng(1).random((400, 30)) < .1)
x[:,7] = np.where(words=='return', x[:,7]+3, 0)
x[:,8] = np.where(words=='<script>hacked=1</script>', x[:,8]+2, 0)
write_codes('codes', sparse.csr_matrix(x), pd.DataFrame(dict(episode=np.arange(400)//20, token=words)), 30)
store = CodeStore('codes')
_ = statistics(store.codes)
store
#%%
from steerlens.explore.widgets import browse, play
browse(store, {9: 'what is <b>labelled</b>'})
#%%
from steerlens.steer.directions import Direction
v = torch.randn(256, generator=torch.Generator().manual_seed(3))*8
d = Direction('diffmean', v, 'blocks.1.hook_resid_post', 'all', 'code->prose')
play('nano_lm', d)
'''


def notebook(path):
    "Not run yet"
    cells = [dict(cell_type='code', id=f'c{i}', metadata={}, source=s.strip(), outputs=[], execution_count=None)
             for i,s in enumerate(CELLS.split('#%%'))]
    spec = dict(name='python3', display_name='Python 3', language='python')
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=spec), nbformat=4, nbformat_minor=5)))


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "The address of a JupyterLab with nobody's settings, which doesn't ask to build Dash's extension, and its folder"
    home = tmp_path_factory.mktemp('lab')
    folder,page_config = home/'work', home/'CONFIG'/'labconfig'/'page_config.json'
    folder.mkdir()
    page_config.parent.mkdir(parents=True)
    page_config.write_text('{"buildCheck": false}')
    notebook(folder/'pages.ipynb')
    env = os.environ | {f'JUPYTER_{k}_DIR': str(home/k) for k in ('CONFIG', 'DATA', 'RUNTIME')}
    env |= dict(STEERLENS_ROOT=str(ROOT), OMP_NUM_THREADS='1')
    how = ['--no-browser', '--allow-root', '--port=0', '--LabApp.news_url=None', f'--IdentityProvider.token={TOKEN}',
           f'--ServerApp.root_dir={folder}', f'--LabApp.user_settings_dir={home}/settings',
           f'--LabApp.workspaces_dir={home}/spaces']
    with open(home/'log', 'w') as log:
        p = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *how], stdout=log, stderr=log, env=env, cwd=folder)
    yield address(home/'log', p), folder
    p.terminate()
    try: p.wait(20)
    except subprocess.TimeoutExpired: p.kill() # it waits for kernels that wait for it
    p.wait()


def address(log, process, seconds=30):
    "Where it listens, as its log says"
    end = time.monotonic()+seconds
    while not (found := re.search(r'http://(?:localhost|127\.0\.0\.1):\d+', log.read_text())):
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(.05)
    return found[0]


@pytest.fixture(scope='module')
def context():
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield browser.new_context(viewport=dict(width=1300, height=1000))
        browser.close()


def until_idle(page):
    "A kernel that lost its port to another process doesn't come: loaded again, JupyterLab starts another"
    for _ in range(2):
        try: return page.wait_for_selector('text=/Idle$/', timeout=60_000)
        except api.TimeoutError: page.reload()
    try: page.wait_for_selector('text=/Idle$/', timeout=60_000)
    except api.TimeoutError: pytest.fail(f'no kernel; the page says: {page.locator("body").inner_text()}')


@pytest.fixture(scope='module')
def page(context, lab):
    "The notebook, all of it run, and no complaint of the browser"
    page = context.new_page()
    said = []
    page.on('pageerror', lambda e: said.append(str(e)))
    own = re.compile(rf'{lab[0]}|ws://localhost|data:|blob:')
    page.on('request', lambda r: None if own.match(r.url) else said.append(r.url))
    page.goto(f'{lab[0]}/doc/tree/pages.ipynb?token={TOKEN}')
    until_idle(page)
    page.locator('.jp-Cell .jp-InputArea-editor').first.click()
    for _ in CELLS.split('#%%'): page.keyboard.press('Shift+Enter')
    page.wait_for_selector('.steerlens-live .arms .cell', timeout=150_000)
    yield page
    assert not said


def live(page, selector): return page.locator(f'.steerlens-live {selector}')
def expect(page, selector): return api.expect(live(page, selector))
def answered(page): page.wait_for_selector('.steerlens-live [data-busy]', state='detached')


def search(page, text):
    live(page, '[type=search]').fill(text)
    answered(page)


def test_what_an_object_says(page):
    said = page.locator('.jp-OutputArea').first.inner_text()
    assert '400 rows' in said and '30 latents, 30 of them alive' in said and 'on disk' in said


def test_find_open_compare(page):
    search(page, 'RETURN')
    expect(page, '.found p').to_contain_text('of 30')
    expect(page, '.found tbody tr >> nth=0').to_contain_text('return')
    live(page, '[type=search]').press('ArrowDown')
    page.keyboard.press('Enter')
    expect(page, '.view h3 >> nth=0').to_contain_text('Latent 7')
    expect(page, '.view .card').to_contain_text('It fires in 25% of the rows (100 of 400)')
    live(page, '[data-name=pin]').click()
    search(page, 'labelled')
    expect(page, '.found tbody tr >> nth=0').to_contain_text('what is <b>labelled</b>')
    live(page, '.found tbody tr').first.click()
    expect(page, '.view').to_contain_text('7 and 9 fire together in')
    expect(page, '.view').to_contain_text('of the rows where either fires')


def test_a_token_stays_a_token(page):
    search(page, 'script')
    expect(page, '.found tbody tr >> nth=0').to_contain_text('<script>hacked=1</script>')
    live(page, '.found tbody tr').first.click()
    expect(page, '.view').to_contain_text('7 and 8')
    assert page.evaluate('typeof hacked')=='undefined'


def test_sorted_and_filtered(page):
    search(page, 'count>39')
    live(page, '[data-name=by]').select_option('max')
    live(page, '[data-name=order]').select_option('up')
    answered(page)
    shown = [float(x) for x in live(page, '.found td:nth-child(4)').all_inner_texts()]
    assert shown==sorted(shown) and 1 < len(shown) < 30
    search(page, 'nowhere')
    expect(page, '.found').to_have_text('0 latents of 30')


def test_keys_are_the_pages_own(page):
    "In a notebook, D twice deletes a cell"
    n = page.locator('.jp-Cell').count()
    search(page, '')
    row = live(page, '.found button[data-row]').first
    row.focus()
    for key in 'ddxb': page.keyboard.press(key)
    live(page, '[data-name=by]').focus()
    for key in 'ddxb': page.keyboard.press(key)
    assert page.locator('.jp-Cell').count()==n


def test_the_slider_changes_the_text(page):
    def texts(): return [t.strip() for t in live(page, '.arms pre').all_inner_texts()]
    before = texts()
    assert len(before)==3 and 'placebo' in live(page, '.arms').inner_text()
    slider = live(page, 'input[type=range]')
    slider.fill('0')
    expect(page, '.arms .own').to_contain_text('0 of 32 tokens are others')
    assert len({*texts()})==1
    slider.focus()
    page.keyboard.press('End')
    expect(page, '.arms .own h4').to_contain_text('+4')
    after = texts()
    assert after[0]==before[0] and after[1] != before[0] and after[2] != after[1]
    live(page, 'textarea').fill('<img src=x onerror=alert(1)>')
    expect(page, '.arms .own pre').to_contain_text('<img src=x')
    live(page, '[data-name=seed]').fill('-3')
    expect(page, '.error >> nth=1').to_contain_text("seed: '-3'; expected a number from 0")


def test_it_fits_a_narrow_column(page):
    page.set_viewport_size(dict(width=640, height=1000))
    wide = '[...document.querySelectorAll(".steerlens-live")].filter(e => e.scrollWidth > e.clientWidth).length'
    assert page.evaluate(wide)==0
    page.set_viewport_size(dict(width=1300, height=1000))


def asked(url, method): return urlopen(Request(url, method=method, headers=dict(Authorization=f'token {TOKEN}')))


def test_saved_and_opened_without_a_kernel(page, context, lab):
    "The last state is there, also for who doesn't trust the notebook; the live page is not"
    url,folder = f'{lab[0]}/api/sessions', lab[1]
    search(page, 'return')
    expect(page, '.found tbody tr >> nth=0').to_contain_text('return')
    live(page, '.found tbody tr').first.click()
    answered(page)
    live(page, '[type=search]').press('Control+s')
    end = time.monotonic()+15
    while 'looked for: return' not in (folder/'pages.ipynb').read_text(): assert time.monotonic() < end
    for s in json.load(asked(url, 'GET')): asked(f'{url}/{s["id"]}', 'DELETE')
    nb = json.loads((folder/'pages.ipynb').read_text())
    nb['cells'][0]['source'] += ' # by somebody else'
    (folder/'theirs.ipynb').write_text(json.dumps(nb))
    for name in ('pages', 'theirs'):
        again = context.new_page()
        again.goto(f'{lab[0]}/doc/tree/{name}.ipynb')
        for part in ('looked for: return', 'Fires on', 'strength +4', 'placebo'):
            shown = again.locator(f'.jp-OutputArea-output >> text={part}').first
            shown.wait_for(state='attached', timeout=20_000)
            shown.scroll_into_view_if_needed() # cells further down are drawn when they come into view
        assert again.locator('.steerlens-live').count()==0
        assert not again.locator('text=model not found').first.is_visible()
        again.close()
