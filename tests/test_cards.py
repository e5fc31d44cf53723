"A site of cards: killed and gone on with, and read in headless Chromium, on a phone and in the dark"
import shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd
import pytest
from scipy import sparse
from steerlens.codes.store import write_codes

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
EVIL = '</script><script>document.title="broken into"</script>'


def made(folder, latents):
    "Codes of 60 texts, in which latent 0 fires on one word"
    g = np.random.default_rng(0)
    long = ' a-word-that-is-much-longer-than-any-phone-is-wide-and-has-no-blanks'
    words = g.choice([' push', ' pull', EVIL, long], 1200)
    who = pd.DataFrame(dict(episode=np.arange(1200)//20, step=0, position=np.arange(1200)%20, token=words))
    fires = np.c_[words==' push', words==EVIL, g.random((1200, latents-2))<.1].astype('f4')
    return write_codes(folder, sparse.csr_matrix(fires), who, latents).folder


def command(*words):
    code = 'from steerlens.cli import main; main()'
    return [sys.executable, '-c', code, 'cards', *map(str, words), '--subject', 'nano_lm']


def test_a_killed_build_is_gone_on_with(tmp_path):
    store,out = made(tmp_path/'codes', 150), tmp_path/'site'
    ask = command('build', store, out, '--workers', 1)
    p = subprocess.Popen(ask, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    half = tmp_path/'.tmp-steps-site'
    until = time.time()+60
    while not list(half.glob('.block-*.json')) and time.time() < until: time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not out.exists() and list(half.glob('.block-*.json'))
    before = {f.name: f.stat().st_mtime_ns for f in (half/'cards').glob('*.html')}
    starts = [int(b.stem.split('-')[1]) for b in half.glob('.block-*.json')]
    kept = {f'{s+i}.html' for s in starts for i in range(64)}
    subprocess.run(ask, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = {f.name: f.stat().st_mtime_ns for f in (out/'cards').glob('*.html')}
    assert len(after)==150 and all(after[n]==before[n] for n in kept & set(before))


api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')


@pytest.mark.skipif(not CHROMIUM, reason='no Chromium here')
def test_a_site_in_a_browser(tmp_path):
    store = made(tmp_path/'codes', 3)
    subprocess.run(command('build', store, tmp_path/'site', '--workers', 1), cwd=ROOT, check=True, capture_output=True)
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        for width,scheme in ((1280, 'light'), (390, 'dark')):
            page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
            said = []
            page.on('console', lambda m: said.append(m.text))
            page.on('pageerror', lambda e: said.append(str(e)))
            page.goto((tmp_path/'site/index.html').as_uri())
            page.keyboard.press('/')
            page.keyboard.type('push')
            assert page.inner_text('#count')=='1 of 3 latents'
            page.keyboard.press('Tab')
            page.fill('#find', '')
            page.click('th button[data-key=id]')
            assert page.inner_text('#rows tr:first-child td')=='0'
            for f in (0, 1):
                page.click(f'#rows a >> text="{f}"')
                page.wait_for_load_state()
                assert page.title()==f'Latent {f}' and not said
                assert page.evaluate('document.documentElement.scrollWidth')==width # nothing sticks out
                dark = page.evaluate('getComputedStyle(document.body).backgroundColor')=='rgb(16, 18, 22)'
                assert dark==(scheme=='dark')
                page.locator('summary').last.focus()
                page.keyboard.press('Enter')
                assert page.locator('details').last.get_attribute('open') is not None
                page.click('text=all latents')
                page.wait_for_load_state()
        browser.close()
