"""The docs: nbdev's processed notebooks -> markdown -> a static site in `_site/`

    python site/build.py                          the whole site, strictly
    python site/build.py --readme-only            README.md alone, from nbs/index.ipynb
    python site/build.py --readme-only --check    exit 1 where README.md is stale
"""
import argparse, base64, logging, os, re, shutil, sys
from html import escape
from pathlib import Path
import yaml
from execnb.nbio import read_nb
from nbdev.config import get_config

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]
DOCS, SHOWCASE = HERE/'docs', ROOT/'reports/showcase'
DIRECTIVE = re.compile(r'^#\|.*\n?', re.M)
CALLOUT = re.compile(r'^::: *\{\.callout-(\w+)[^}]*\}\n(.*?)\n:::$', re.M|re.S)
VIDEO = re.compile(r'^\[([^\]]*)\]\(([^)]+\.mp4)\)$', re.M)
FIGURE = re.compile(r'^!\[([^\]]*)\]\(([^)]+\.svg)\)$', re.M)
HIDDEN = re.compile(r'^#\| *(hide|export|exporti|exports|default_exp|include: *false)\b', re.M)

# -- cells to markdown

def figure(name, alt=''): return f'<div class="figure" tabindex="0"><img src="{name}" alt="{escape(alt, quote=True)}" loading="lazy"></div>'

def markdown(text):
    "A markdown cell: callouts become admonitions, figures may scroll, a lone link to an mp4 plays"
    text = CALLOUT.sub(lambda m: f'/// {m[1]}\n{m[2]}\n///', text)
    text = VIDEO.sub(r'<video controls loop muted playsinline preload="metadata" src="\2" aria-label="\1"></video>', text)
    return FIGURE.sub(lambda m: figure(m[2], m[1]), text)

def output(o, stem, i):
    "The richest form of the output `o`, as markdown; images become files beside the page"
    if o.output_type=='stream': return '' if o.name=='stderr' else fence(''.join(o.text))
    d = {k: v if isinstance(v, str) else ''.join(v) for k,v in (o.get('data') or {}).items()}
    if 'image/svg+xml' in d or 'image/png' in d:
        svg = 'image/svg+xml' in d
        f = DOCS/f"{stem}_{i}.{'svg' if svg else 'png'}"
        f.write_bytes(d['image/svg+xml'].encode() if svg else base64.b64decode(d['image/png']))
        return figure(f.name, d.get('text/plain', '').strip() if svg else '')
    if 'text/markdown' in d: return markdown(d['text/markdown'])
    if 'text/html' in d: return re.sub(r'<style.*?</style>', '', d['text/html'], flags=re.S)
    return fence(d['text/plain']) if 'text/plain' in d else ''

def fence(text): return '```{.text .out}\n'+text.rstrip()+'\n```'

def cell(c, stem, i):
    if c.cell_type!='code': return markdown(c.source)
    src = '' if re.search(r'^#\| *echo: *false', c.source, re.M) else DIRECTIVE.sub('', c.source).strip()
    code = f'```python\n{src}\n```' if src else ''
    return '\n\n'.join(filter(None, [code]+[output(o, stem, f'{i}_{j}') for j,o in enumerate(c.get('outputs') or [])]))

def header(title, description): return f'# {title}\n\n{description}\n{{ .description }}\n' if description else f'# {title}\n'

# -- pages

TOP = re.compile(r'# *(.+)\n*(?:> *(.+(?:\n> *.+)*))?\s*')

def opening(path):
    "What follows the title and the `>` line in a notebook's first cell; nbdev makes a header of that cell and drops the rest"
    first = next(c.source for c in read_nb(path).cells if c.cell_type=='markdown')
    return markdown(TOP.sub('', first, count=1))

def library():
    "Pages of the notebooks, in reading order: [(page, title, text)]"
    from nbdev.serve import proc_nbs
    sys.path[:0] = [str(HERE), str(ROOT)]
    cfg = get_config()
    cfg['skip_procs'], cfg['procs'] = 'exec_show_docs,insert_warning,rm_export', 'api:ShowDocs'
    res = []
    for p in sorted(proc_nbs(n_workers=0, force=True).rglob('*.ipynb'), key=lambda p: (p.name!='index.ipynb', p.name)):
        cells = [c for c in read_nb(p).cells if c.source.strip()]
        fm = yaml.safe_load(cells[0].source.strip().strip('-')) if cells[0].cell_type=='raw' else {}
        page, title = Path(fm.get('output-file', p.name)).stem, fm.get('title', p.stem)
        body = [opening(ROOT/'nbs'/p.name)]+[cell(c, page, i) for i,c in enumerate(cells[bool(fm):])]
        res.append((page, title, '\n\n'.join([header(title, fm.get('description'))]+body)))
    return res

def phases():
    "Pages of the phase notebooks, as they stand before they are run"
    res = []
    for p in sorted((ROOT/'sae_notebooks').glob('[0-9]*.ipynb')):
        cells = read_nb(p).cells
        top = TOP.match(cells[0].source) if cells and cells[0].cell_type=='markdown' else None
        title, about = (top[1], top[2]) if top else (p.stem, None)
        if top: cells[0].source = cells[0].source[top.end():]
        run = f'Run it with `steerlens run {p.stem} nano_vla`, or all phases with `make run`; the executed notebook lands in `reports/{p.stem}/`.'
        body = [cell(c, p.stem, i) for i,c in enumerate(cells) if c.source.strip() and not HIDDEN.search(c.source)]
        res.append((p.stem, title, '\n\n'.join([header(title, about), run]+body)))
    return res

def showcase():
    "The page of the committed run, made from nothing but `reports/showcase/`"
    head = header('Showcase', 'One run on the embedded subject: what flipped, with which method, and what the placebo did')
    if not (SHOWCASE/'metrics.json').exists(): return [('showcase', 'Showcase', head+'\nThere is no showcase yet: `python site/showcase.py` makes one from a finished run.')]
    from steerlens.core import read_json
    from steerlens.report import flips_md, facts_md
    m = read_json(SHOWCASE/'metrics.json')
    first = ['flips', 'strength', 'spliced', 'actions', 'off_axis', 'ranks', 'cosines']
    files = sorted((p for p in SHOWCASE.iterdir() if p.suffix in ('.svg', '.mp4', '.png')), key=lambda p: (first.index(p.stem) if p.stem in first else 99, p.name))
    (DOCS/'showcase').mkdir()
    for p in files: shutil.copy(p, DOCS/'showcase')
    shown = lambda ext: [markdown(f"{'!' if ext=='.svg' else ''}[{p.stem.replace('_', ' ')}](showcase/{p.name})") for p in files if p.suffix==ext]
    return [('showcase', 'Showcase', '\n\n'.join([head, *shown('.mp4'), '## Flips', flips_md(m), *shown('.svg'), '## The run', facts_md(m)]))]

def benchmarks():
    "The page of the committed tables, made from nothing but `benchmarks/results/`"
    import json
    from textwrap import wrap
    tables = [json.loads(p.read_text()) | dict(stem=p.stem) for p in sorted((ROOT/'benchmarks/results').glob('*.json'))]
    if not tables: return []
    def table(t):
        num = lambda x: f'{x:,.0f}' if x >= 1000 else f'{x:.4g}'
        rows = [f"| {'<br>'.join(wrap(r['name'], 44))}<small class=peer>beside {r['peer_name']}</small> | {num(r['ours'])} | {num(r['peer'])} | {r['unit']} | **{r['ratio']:.2f}** | {num(round(r['memory_mb'])) if r['memory_mb'] else ''} |" for r in t['rows']]
        ran = ', '.join(f'{k} {v}' for k,v in t['machine'].items() if k!='quick')
        return '\n\n'.join([f"## {t['title']}", t['about'], '\n'.join(['| | ours | peer | unit | ours / peer | MB |', '|---|--:|--:|---|--:|--:|', *rows]), f"`benchmarks/{t['stem']}.py` on {ran}."])
    head = header('Benchmarks', 'Ours beside a peer, on the same work in the same run')
    note = 'Machines are noisy, so read the ratios. Where the unit is a rate, more is better; where it is seconds or MB, less is. `make bench` makes these tables anew.'
    return [('benchmarks', 'Benchmarks', '\n\n'.join([head, note, *map(table, tables)]))]

# -- links

def link(pages):
    "Resolve links: nbdev's absolute ones and those to notebooks point to pages here, dead anchors are dropped"
    cfg = get_config()
    base = re.escape(cfg.doc_host+cfg.doc_baseurl.rstrip('/')+'/')
    ids = {page: set(re.findall(r'\{ #(\S+) \.api', text)) for page,_,text in pages}
    stems = {p.stem: p.stem.split('_', 1)[-1] for p in (ROOT/'nbs').glob('*.ipynb')} | {p: p for p in ids}
    def local(m):
        page, anchor = m[1], m[2]
        return f'({page}.md#{anchor})' if anchor in ids.get(page, ()) else f'({page}.md)' if page in ids else m[0]
    def nb(m): return f'({stems[m[1]]}.md{m[2] or ""})' if stems.get(m[1]) in ids else m[0]
    for page,title,text in pages:
        text = re.sub(rf'\({base}([\w.]+)\.html(?:#([^)\s]*))?\)', local, text)
        text = re.sub(r'\((?:\.\./)?(?:nbs/|sae_notebooks/)?([\w.]+)\.ipynb(#[^)\s]*)?\)', nb, text)
        yield page, title, text.replace('../reports/showcase/', 'showcase/')

# -- the whole

def site():
    os.environ['NO_MKDOCS_2_WARNING'] = '1'
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort
    logging.basicConfig(format='docs: %(message)s', level=logging.WARNING)
    shutil.rmtree(DOCS, ignore_errors=True)
    DOCS.mkdir()
    shutil.copy(HERE/'steerlens.css', DOCS)
    lib, show, ph = library(), showcase()+benchmarks(), phases()
    for page,_,text in link(lib+show+ph): (DOCS/f'{page}.md').write_text(text)
    item = lambda ps: [{title: f'{page}.md'} for page,title,_ in ps]
    rest = [p for p in lib if p[0]!='index']
    nav = [{'Home': 'index.md'}]+item(show)+([{'Phases': item(ph)}] if ph else [])+[{'Library': item(rest)}]
    cfg = load_config(str(HERE/'mkdocs.yml'), nav=nav, strict=True)
    try: build(cfg)
    except Abort: sys.exit('docs: not built; the lines above say which page and link (pages come from nbs/, by way of site/docs/)')
    print(f'docs: {len(lib+show+ph)} pages, open {Path(cfg.site_dir)/"index.html"}')

def readme():
    "README.md as text: the index notebook's prose and outputs, with links that work from the project's root"
    parts = []
    for c in read_nb(ROOT/'nbs/index.ipynb').cells:
        if c.cell_type=='markdown': parts.append(c.source)
        elif c.cell_type=='code' and not HIDDEN.search(c.source):
            if not re.search(r'^#\| *echo: *false', c.source, re.M): parts.append(f"```python\n{DIRECTIVE.sub('', c.source).strip()}\n```")
            for o in c.get('outputs') or []:
                d = o.get('data') or {}
                if 'text/markdown' in d: parts.append(''.join(d['text/markdown']))
    text = '\n\n'.join(p.strip() for p in parts)
    text = re.sub(r'\]\((\d\w*[\w.]*\.ipynb)', r'](nbs/\1', text).replace('](../', '](')
    return '<!-- Written by `python site/build.py --readme-only` from nbs/index.ipynb -->\n\n'+text+'\n'

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--readme-only', action='store_true', help='write README.md and nothing else')
    a.add_argument('--check', action='store_true', help='write nothing, exit 1 where README.md is stale')
    a = a.parse_args()
    os.chdir(ROOT)
    old, new = ROOT/'README.md', readme()
    if a.check:
        if not old.exists() or old.read_text()!=new: sys.exit('README.md: stale; run `python site/build.py --readme-only` after editing nbs/index.ipynb')
    else:
        old.write_text(new)
        if not a.readme_only: site()
