"""The dashboard in headless Chromium over 16,384 latents and 30 million activations: seconds from click to answer

    python benchmarks/dash.py [--quick] [--json FILE] [--only pages]

Seconds from the click (or key, or address) to the frame in which the answer stands on the page; the median of some.
`peer` is the same before anything was warmed: the first of its kind after the server has started.
"""
import os, re, shutil, subprocess, sys, time
from statistics import median
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
import numpy as np, pandas as pd
import torch
from scipy import sparse
from playwright.sync_api import sync_playwright
from steerlens.codes.encode import facts_of, usable
from steerlens.codes.statistics import statistics
from steerlens.codes.store import write_codes
from steerlens.explore.labels import labels_of
from steerlens.sae.models import load_sae, new_sae, save_sae
from table import args, run

ARGS = args(__doc__)
F,K,D = 16_384, 32, 64                          # Latents, active ones a row, width of the decoder
N,CHUNK = 125_000 if ARGS.quick else 1_000_000, 62_500 # Rows, made so many at a time
BAR = .5                                        # Seconds
TIMES = 5 if ARGS.quick else 15                 # Clicks of a kind
SITE = 'blocks.1.hook_resid_post'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


# A store with the frequencies of language, its autoencoder, and a draft for every latent

def chunk(rows, seed):
    "Codes of some rows: a few latents in every second or tenth row, most in one of a thousand"
    g = np.random.default_rng(seed)
    p = 1/(np.arange(F)+50)**1.05
    features = np.sort(g.choice(F, rows*K, p=p/p.sum()).reshape(rows, K).astype('i4'), axis=1)
    new = np.ones_like(features, bool)
    new[:,1:] = features[:,1:]!=features[:,:-1]
    values = g.gamma(2, 1, int(new.sum())).astype('f4')
    return sparse.csr_matrix((values, features[new], np.r_[0, np.cumsum(new.sum(1))]), (rows, F))


def lines():
    "Who the rows are: episodes of a hundred tokens"
    i = np.arange(N)
    token = np.random.default_rng(0).zipf(1.5, N)%2000
    split = np.where(i//100%5==0, 'validation', 'train')
    return pd.DataFrame(dict(episode=i//100, step=0, position=i%100, token=[f' w{t}' for t in token], split=split,
                             task=np.array(['push', 'pull', 'open', 'close'])[i//100%4]))


def made(root):
    "The store's folder"
    folder = root/'sae'
    save_sae(new_sae(D, F, K), folder, SITE, torch.zeros(F), pd.DataFrame(dict(step=[0])), {})
    sae = facts_of(usable(load_sae(folder, SITE))) | dict(folder=str(folder))
    parts = (chunk(min(CHUNK, N-i), i) for i in range(0, N, CHUNK))
    codes = write_codes(root/f'codes/made/{SITE}/main', parts, lines(), F, chunk_rows=CHUNK, site=SITE, sae=sae)
    statistics(codes)
    drafts = {f: dict(label=f'word {f%997}', confidence=f%10/10) for f in range(F)}
    labels_of(codes.folder).update(drafts, 'model:template')
    return codes


# What is seen

SEEN = """(done) => new Promise(seen => {
  const there = Function('return '+done)
  const look = () => there() ? requestAnimationFrame(() => seen(performance.now())) : requestAnimationFrame(look)
  look()
})"""
FIRST = """(() => { const look = () => {
  for (const [at, name] of [['[data-row]', 'rows'], ['#page [data-row]', 'first']])
    if (!window[name] && document.querySelector(at)) requestAnimationFrame(() => window[name] = performance.now())
  window.first || requestAnimationFrame(look) }
  requestAnimationFrame(look) })()"""


def until(tab, do, done):
    "Seconds from `do` to the frame in which `done` holds; both are JavaScript"
    return tab.evaluate(f'async () => {{ const t = performance.now(); {do}; return await ({SEEN})({done!r}) - t }}')/1e3


def go(path):
    "What a click on a link does"
    to = f'{{pathname: {path!r}, search: "", href: location.origin+{path!r}}}'
    return f'dash_clientside.set_props("url", {to})'


def latent(tab, f): return until(tab, go(f'/latent/{f}'), f'document.querySelector("h1")?.textContent=="Latent {f}"')


def find(tab, word):
    "Type a word into the box, as React hears it"
    box = 'const b = document.getElementById("find-text")'
    typed = f'Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(b, {word!r})'
    do = f'{box}; {typed}; b.dispatchEvent(new Event("input", {{bubbles: true}}))'
    return until(tab, do, f'document.querySelector("[data-search*=\\"q={word}\\"]")')


def compare(tab, a, b):
    return until(tab, go(f'/compare/{a}/{b}'), f'document.querySelectorAll("article").length==2 && '
                                               f'document.querySelector("h2").textContent=="Latents {a} and {b}"')


def back(tab): return until(tab, go('/'), 'document.querySelector("[data-row]")')
def queue(tab): return until(tab, go('/queue'), 'document.querySelector("#queue-accept")')
def chart(tab): return until(tab, go('/map'), 'document.querySelector(".js-plotly-plot .gl-canvas")')


def turned(tab):
    "To the next page of rows"
    before = tab.inner_text('.pager span')
    done = f'document.querySelector(".pager span").textContent!={before!r}'
    return until(tab, 'document.querySelector("[data-key=ArrowRight]").click()', done)


def opened(browser, url):
    "A new visitor, with nothing in the cache; seconds until the first rows are seen, and until the page answers"
    tab = browser.new_context(viewport=dict(width=1280, height=900)).new_page()
    tab.add_init_script(FIRST)
    tab.goto(url)
    tab.wait_for_function('window.first')
    return tab, tab.evaluate('window.rows')/1e3, tab.evaluate('window.first')/1e3


def measured(browser, url, codes):
    "Name -> seconds, the first of its kind first"
    g,n = np.random.default_rng(1), codes.counts
    some = np.flatnonzero((n > 0) & (n < np.quantile(n, .9))).tolist()
    often = np.argsort(-n)[:TIMES].tolist()
    picks = [int(f) for f in g.permutation(some)[:3*TIMES]]
    tab,paint,first = opened(browser, url)
    found = {'first paint, with rows': [paint], 'first page answers': [first]}
    found['open a latent'] = [latent(tab, f) for f in picks[:TIMES]]
    found['open one of the most frequent'] = [latent(tab, f) for f in often]
    found['back to the list'] = []
    for _ in range(3):
        found['back to the list'].append(back(tab))
        latent(tab, picks[0])
    back(tab)
    found['find a word'] = [find(tab, f'w{i}') for i in range(1, TIMES+1)]
    find(tab, 'word')
    found['next page of rows'] = [turned(tab) for _ in range(TIMES)]
    found['compare two'] = [compare(tab, a, b) for a,b in zip(picks[TIMES:], picks[2*TIMES:])]
    found['queue'],found['map'] = [], []
    for kind,way in (('queue', queue), ('map', chart)):
        for _ in range(3):
            found[kind].append(way(tab))
            back(tab)
    for _ in range(TIMES//2):
        other,paint,first = opened(browser, url)
        found['first paint, with rows'].append(paint)
        found['first page answers'].append(first)
        other.context.close()
    return found


def row(name, seconds):
    return dict(name=name, ours=median(seconds[1:]), peer=seconds[0], peer_name='ours, the first time', unit='s',
                memory_mb=0, bar=f'{BAR} s', met=bool(median(seconds[1:]) <= BAR))


def pages(root):
    "All of it, against the server that a user starts"
    codes = made(root)
    code = 'from steerlens.cli import main; main()'
    began = time.perf_counter()
    p = subprocess.Popen([sys.executable, '-c', code, 'dash', '--model', codes.folder, '--port', '0', '--author', 'me'],
                         stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r'http://\S+', p.stdout.readline())[0]
        print(f'the server answers after {time.perf_counter()-began:.1f} s', file=sys.stderr)
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
            found = measured(browser, url, codes)
            browser.close()
    finally:
        p.terminate()
        p.wait(20)
    return [row(f'{k}, {F:,} latents, {codes.nnz/1e6:.0f} M activations', v) for k,v in found.items()]


ABOUT = ('Synthetic codes with the frequencies of language, an autoencoder and a draft label for each latent, in '
         'headless Chromium. Seconds from the click to the frame in which the answer stands on the page. The peer is '
         'ours, the first time after the server has started.')
if __name__=='__main__': run(dict(pages=pages), ARGS, title='The dashboard', about=ABOUT)
