"The pages of the docs as markdown: the library's notebooks, the committed runs, the showcase"
import ast, json, re, shutil, sys
from pathlib import Path
import yaml
from execnb.nbio import read_nb
from nbdev.config import get_config
from cells import cell, figure, fold, markdown, outputs, python, source, video

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]
DOCS, SHOWCASE = HERE/'docs', ROOT/'reports/showcase'
TOP = re.compile(r'# *(.+)\n*(?:> *(.+(?:\n> *.+)*))?\s*')
# The library's parts: the first numbers of their notebooks, and a name
PARTS = {'0': 'Core', '1': 'Subjects', '2': 'Activations', '3': 'Autoencoders', '4': 'Codes', '5': 'Steering',
         '6': 'Lens', '7': 'Exploring', '8': 'Decoders and explanations', '9': 'Report and command line'}


def header(title, description=''):
    return f'# {title}\n\n{description}\n{{ .description }}\n' if description else f'# {title}\n'


def read(path): return json.loads(path.read_text(encoding='utf-8'))

# -- the library

def opening(path):
    "What follows title and `>` line in a notebook's first cell; nbdev makes a header of that cell and drops the rest"
    first = next(c.source for c in read_nb(path).cells if c.cell_type=='markdown')
    return markdown(TOP.sub('', first, count=1))


def processed():
    "The notebooks of `nbs/` after nbdev's own processing, the front page first"
    from nbdev.serve import proc_nbs
    sys.path[:0] = [str(HERE), str(ROOT)]
    cfg = get_config()
    cfg['skip_procs'],cfg['procs'] = 'exec_show_docs,insert_warning,rm_export,add_links', 'api:ShowDocs'
    found = proc_nbs(n_workers=0, force=True).rglob('*.ipynb')
    return sorted(found, key=lambda p: (p.name!='index.ipynb', p.name))


def library():
    "Pages of the notebooks, in reading order: {part: [(page, title, text)]}"
    parts = {}
    for p in processed():
        cells = [c for c in read_nb(p).cells if c.source.strip()]
        front = yaml.safe_load(cells[0].source.strip().strip('-')) if cells[0].cell_type=='raw' else {}
        page,title = Path(front.get('output-file', p.name)).stem, front.get('title', p.stem)
        body = [header(title, front.get('description')), opening(ROOT/'nbs'/p.name)]
        body += [cell(c, f'{page}_{i}', DOCS) for i,c in enumerate(cells[bool(front):])]
        part = 'Policy studio' if '_app.' in p.name else PARTS.get(p.name[0], '')
        parts.setdefault(part, []).append((page, title, '\n\n'.join(body)))
    return parts

# -- executed phases

PARAMETERS = 'parameters', 'injected-parameters' # papermill's tags


def tags(c): return c.metadata.get('tags', [])
def tagged(cells, tag): return next((c for c in cells if tag in tags(c)), None)


def assigned(text):
    "{name: value as written} of the assignments in a parameters cell"
    found = {}
    for o in ast.parse(text).body:
        target = o.target if isinstance(o, ast.AnnAssign) else o.targets[0] if isinstance(o, ast.Assign) else None
        if target: found[ast.unparse(target)] = ast.unparse(o.value)
    return found


def parameters(cells):
    "What a run was made with, as a folded table: each parameter's value and what it means"
    declared,injected = [tagged(cells, tag) for tag in PARAMETERS]
    if not declared: return ''
    values = assigned(declared.source) | (assigned(injected.source) if injected else {})
    meaning = dict(re.findall(r'^(\w+) *:.*?#\s*(.*)$', declared.source, re.M))
    bar = '\\|'
    lines = ['| parameter | value | meaning |', '|---|---|---|']
    lines += [f"| `{k}` | `{v.replace('|', bar)}` | {meaning.get(k, '')} |" for k,v in values.items()]
    return fold(f'{len(values)} parameters', '\n'.join(lines), 'parameters')


def executed(c, name):
    "A cell of an executed notebook: what it showed, its code folded below"
    if c.cell_type!='code': return markdown(c.source)
    code = source(c)
    return '\n\n'.join(filter(None, [*outputs(c, name, DOCS), code and fold('code', python(code), 'code')]))


def provenance(folder):
    "A run's manifest, folded, under a line with its commit and date"
    if not (folder/'manifest.json').exists(): return ''
    m = read(folder/'manifest.json')
    git = m.get('git') or {}
    commit = git.get('commit', 'unknown')[:10]+(' and local changes' if git.get('dirty') else '')
    line = f"Commit {commit}, {m.get('created', '')[:10]}, seed {m.get('seed')}."
    return f'## The run\n\n{line}\n\n'+fold('manifest.json', f"```json\n{json.dumps(m, indent=1)}\n```", 'manifest')


def run_page(path):
    "The page of one executed notebook: (page, title, text)"
    phase,subject = path.parent.name, path.stem
    page = f'{phase}.{subject}'
    cells = read_nb(path).cells
    top = TOP.match(cells[0].source)
    cells[0].source = cells[0].source[top.end():]
    about = (f'Executed on **{subject}**. [The notebook](notebooks/{page}.ipynb); '
             f'`steerlens run {phase} {subject}` makes it anew.')
    told = [c for c in cells if c.source.strip() and not {*PARAMETERS} & {*tags(c)}]
    body = [executed(c, f'{page}_{i}') for i,c in enumerate(told)]
    (DOCS/'notebooks').mkdir(exist_ok=True)
    shutil.copy(path, DOCS/'notebooks'/f'{page}.ipynb')
    folder = path.parent/subject
    text = [header(top[1], top[2]), about, parameters(cells), *body, *sweep(folder), provenance(folder)]
    return page, f'{top[1]} ({subject})', '\n\n'.join(filter(None, text))


def sweep(folder):
    "The figure of the subject's sweep, if there is one"
    svg = folder/'sweep.svg'
    if not svg.exists(): return []
    shutil.copy(svg, DOCS/f'{folder.name}.sweep.svg')
    drawn = figure(f'{folder.name}.sweep.svg', alt(svg))
    return ['## Other sizes and seeds', '`make sweep` trains and compares them.', drawn]


def subjects():
    "The subjects of the showcase: those with most phases first"
    ran = [p.parent.name for p in SHOWCASE.glob('[0-9]*_*/*/metrics.json')]
    return sorted({*ran}, key=lambda s: (-ran.count(s), s))


def runs():
    "The pages of the committed runs: {subject: [(page, title, text)]}"
    def number(p): return int(p.parent.name.split('_')[0])
    pages = {s: [run_page(p) for p in sorted(SHOWCASE.glob(f'[0-9]*_*/{s}.ipynb'), key=number)] for s in subjects()}
    return {s: ps for s,ps in pages.items() if ps}

# -- the showcase

FIRST = ['flips', 'strength', 'spliced', 'actions', 'off_axis', 'ranks', 'cosines']


def alt(svg):
    "The title of a figure"
    found = re.search(r'<title>(.*?)</title>', svg.read_text(encoding='utf-8'), re.S)
    return ' '.join(found[1].split()) if found else svg.stem


def place(path):
    "A figure's place in the showcase"
    return FIRST.index(path.stem) if path.stem in FIRST else 99, path.name


def shown(folder):
    "Copies of the figures and videos of a run, as markdown"
    to = DOCS/'showcase'/folder.parent.name/folder.name
    shutil.copytree(folder, to)
    at = to.relative_to(DOCS).as_posix()
    films = [video(f'{at}/{p.name}', p.stem.replace('_', ' ')) for p in sorted(folder.glob('*.mp4'))]
    return films, [figure(f'{at}/{p.name}', alt(p)) for p in sorted(folder.glob('*.svg'), key=place)]


def steered(subject):
    "What the showcase says of a subject that was steered"
    from steerlens import facts, findings
    m = read(SHOWCASE/'3_steering'/subject/'metrics.json')
    films,figures = shown(SHOWCASE/'3_steering'/subject)
    told = [f'**{findings.headline(m)}.**', *films, '### Flips', findings.flips_md(m), *figures]
    return [*told, '### The run', facts.facts_md(m)]


def able(subject):
    "What the showcase says of a subject that was read and rebuilt only"
    parts = []
    told = [('1_residuals', 'able'), ('1_residuals', 'logit_lens'), ('2_sae', 'spliced'), ('2_sae', 'sweep')]
    for phase,name in told:
        svg = SHOWCASE/phase/subject/f'{name}.svg'
        if not svg.exists(): continue
        to = DOCS/'showcase'/phase/subject
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(svg, to)
        parts.append(figure(f'showcase/{phase}/{subject}/{name}.svg', alt(svg)))
    return parts


def lenses(subject):
    "What the showcase says of a subject that was read through its lenses"
    run = SHOWCASE/'4_tokens'/subject
    if not run.exists(): return []
    return ['### What it says', read(run/'metrics.json')['says'], *shown(run)[1]]


def studio(subject):
    "What the showcase says of a policy whose latents were pushed"
    run = SHOWCASE/'6_studio'/subject
    if not run.exists(): return []
    films,figures = shown(run)
    return ['### The policy studio', f'![The page](showcase/6_studio/{subject}/page.png)', *figures, *films]


def gates():
    "The gates that the committed runs miss"
    from steerlens import findings
    found = {p.parent.name: read(p) for p in sorted(SHOWCASE.glob('2_sae/*/metrics.json'))}
    text = findings.gates_md(found)
    return ['## Gates missed', text] if text else []


def showcase():
    "The page of the committed runs, made from nothing but `reports/showcase/`"
    head = header('Showcase', 'The committed runs: what flipped, with which method, and what the placebo did')
    parts = []
    (DOCS/'showcase').mkdir(exist_ok=True)
    for s in subjects():
        phases = [p.parent.name for p in sorted(SHOWCASE.glob(f'[0-9]*_*/{s}.ipynb'))]
        read_on = ', '.join(f'[{phase}]({phase}.{s}.md)' for phase in phases)
        flipped = (SHOWCASE/'3_steering'/s/'metrics.json').exists()
        parts += [f'## {s}', read_on and f'The executed phases: {read_on}.', *(steered(s) if flipped else able(s))]
        parts += [*lenses(s), *studio(s)]
    parts = parts or ['There is no showcase yet: `make showcase` makes one from a finished run.']
    return [('showcase', 'Showcase', '\n\n'.join(filter(None, [head, *parts, *gates()])))]
