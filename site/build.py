"""The docs: nbdev's processed notebooks and the committed runs -> markdown -> a static site in `_site/`

    python site/build.py                          the whole site, strictly
    python site/build.py --readme-only            README.md alone, from nbs/index.ipynb
    python site/build.py --readme-only --check    exit 1 where README.md is stale
"""
import argparse, logging, os, re, shutil, sys
from pathlib import Path
from execnb.nbio import read_nb
from nbdev.config import get_config
from bench import benchmarks
from cells import DIRECTIVE, HIDDEN, SILENT
from links import leftovers, loaded, resolve
from pages import DOCS, HERE, ROOT, SHOWCASE, header, library, runs, showcase

FROM = 'the lines above say where; pages come from nbs/ and reports/showcase/, by way of site/docs/'
STALE = 'README.md: stale; run `python site/build.py --readme-only` after editing nbs/index.ipynb'

# -- the site

def stems():
    "{name of a notebook: its page}"
    nbs = {p.stem: p.stem.split('_', 1)[-1] for p in (ROOT/'nbs').glob('*.ipynb')}
    phases = {p.parent.name: f'{p.parent.name}.{p.stem}' for p in sorted(SHOWCASE.glob('[0-9]*_*/*.ipynb'))}
    return nbs | phases


def sources():
    "All code that gives words a meaning: the library's modules, and the phases"
    library = [p.read_text(encoding='utf-8') for p in sorted((ROOT/'steerlens').rglob('[!_]*.py'))]
    phases = [read_nb(p).cells for p in sorted((ROOT/'sae_notebooks').glob('[0-9]*.ipynb'))]
    return library+['\n'.join(c.source for c in cells if c.cell_type=='code') for cells in phases]


def menu(lib, show, phases):
    "The navigation: single pages, the runs by subject, the library by part"
    def entries(pages): return [{re.sub(r' \([\w.]+\)$', '', title): f'{page}.md'} for page,title,_ in pages]
    front = [{'Home': 'index.md'}]+entries(show)
    ran = [{f'Runs: {subject}': entries(pages)} for subject,pages in phases.items()]
    return front+ran+[{part: entries(pages)} for part,pages in lib.items() if part]


def write():
    "All pages as markdown in `site/docs/`; returns their navigation"
    shutil.rmtree(DOCS, ignore_errors=True)
    DOCS.mkdir()
    for f in ('steerlens.css', 'offline.js'): shutil.copy(HERE/f, DOCS)
    lib,phases = library(), runs()
    show = showcase()+benchmarks(ROOT, DOCS, header)
    pages = [p for ps in (*lib.values(), show, *phases.values()) for p in ps]
    cfg = get_config()
    host = cfg.doc_host+cfg.doc_baseurl.rstrip('/')+'/'
    for page,_,text in resolve(pages, host, stems(), sources()): (DOCS/f'{page}.md').write_text(text, encoding='utf-8')
    return menu(lib, show, phases), len(pages)


def check(folder):
    "Refuse Markdown that is left over in the HTML, and what is missing or loaded from the network"
    wrong = []
    for p in sorted(folder.glob('*.html')):
        page = p.read_text(encoding='utf-8')
        wrong += [f'{p.name}: Markdown of {what} is left over: {text}' for what,text in leftovers(page)]
        for src in loaded(page):
            if '//' in src: wrong.append(f'{p.name}: {src}: loaded from the network')
            elif not (folder/src.lstrip('/')).exists(): wrong.append(f'{p.name}: {src}: no such file')
    for w in wrong: print(f'docs: {w}', file=sys.stderr)
    if wrong: sys.exit(f'docs: not right; {FROM}')


def searchable(folder):
    "The search's index as a script too: a page opened from the file system can't fetch"
    index = (folder/'search/search_index.json').read_text(encoding='utf-8')
    (folder/'search/search_index.js').write_text(f'var __index = {index}', encoding='utf-8')


def site():
    os.environ['NO_MKDOCS_2_WARNING'] = '1'
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort
    logging.basicConfig(format='docs: %(message)s', level=logging.WARNING)
    nav,n_pages = write()
    cfg = load_config(str(HERE/'mkdocs.yml'), nav=nav, strict=True)
    try: build(cfg)
    except Abort: sys.exit(f'docs: not built; {FROM}')
    searchable(Path(cfg.site_dir))
    check(Path(cfg.site_dir))
    print(f'docs: {n_pages} pages, open {Path(cfg.site_dir)/"index.html"}')

# -- README

def shown(c):
    "A cell of the front page as README has it: prose, code that is to be seen, outputs in markdown"
    if c.cell_type=='markdown': return [c.source]
    if c.cell_type!='code' or HIDDEN.search(c.source): return []
    code = [] if SILENT.search(c.source) else [f"```python\n{DIRECTIVE.sub('', c.source).strip()}\n```"]
    data = [o.get('data') or {} for o in c.get('outputs') or []]
    return code+[''.join(d['text/markdown']) for d in data if 'text/markdown' in d]


def readme():
    "README.md as text: the front page, with links that work from the project's root"
    parts = [p.strip() for c in read_nb(ROOT/'nbs/index.ipynb').cells for p in shown(c)]
    text = re.sub(r'\]\((\d\w*[\w.]*\.ipynb)', r'](nbs/\1', '\n\n'.join(parts)).replace('](../', '](')
    return '<!-- Written by `python site/build.py --readme-only` from nbs/index.ipynb -->\n\n'+text+'\n'


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--readme-only', action='store_true', help='write README.md and nothing else')
    a.add_argument('--check', action='store_true', help='write nothing, exit 1 where README.md is stale')
    a = a.parse_args()
    os.chdir(ROOT)
    old,new = ROOT/'README.md', readme()
    fresh = old.exists() and old.read_text(encoding='utf-8')==new
    if a.check and not fresh: sys.exit(STALE)
    if a.check: return
    old.write_text(new, encoding='utf-8')
    if not a.readme_only: site()


if __name__=='__main__': main()
