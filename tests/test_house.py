"The house's own rules, checked by reading files alone; `make check` runs these first"
import ast, importlib.metadata as md, json, re, sys, tomllib
from functools import cache
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = sorted((ROOT/'nbs').glob('*.ipynb'))
PHASES = sorted((ROOT/'sae_notebooks').glob('*.ipynb'))
SCRIPTS = [p for d in ('tests', 'benchmarks', 'site') for p in sorted((ROOT/d).glob('*.py'))]
MODULES = [p for p in sorted((ROOT/'steerlens').rglob('*.py')) if p.name!='_modidx.py']
WIDTH, LINES = 120, 12


def name(path): return path.stem


@cache
def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def code_cells(path): return [''.join(c['source']) for c in cells(path) if c['cell_type']=='code']
def plain(source): return re.sub(r'^[%!].*', '', source, flags=re.M)
def code(path): return '\n'.join(map(plain, code_cells(path)))
def number(path): return int(path.name.split('_')[0])


@cache
def modules():
    "{module: the notebook it is exported from}"
    found = {}
    for nb in NBS:
        for module in re.findall(r'^#\| *default_exp ([\w.]+)', code(nb), re.M): found[f'steerlens.{module}'] = nb
    return found


def imported(source):
    "The modules of this project that a notebook's code imports, at its top or anywhere inside"
    found = set()
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Import): found |= {a.name for a in n.names}
        if isinstance(n, ast.ImportFrom): found |= {n.module} | {f'{n.module}.{a.name}' for a in n.names}
    return found & set(modules())

# -- readable

@pytest.mark.parametrize('path', [*NBS, *PHASES, *SCRIPTS], ids=name)
def test_no_line_is_longer_than_120(path):
    lines = (code(path) if path.suffix=='.ipynb' else path.read_text(encoding='utf-8')).splitlines()
    long = [line for line in lines if len(line)>WIDTH]
    assert not long, f'{path.name}: {len(long)} lines over {WIDTH} characters; say less a line; first: {long[0][:60]}'


@pytest.mark.parametrize('nb', PHASES, ids=name)
def test_a_phase_notebook_reads_as_a_report(nb):
    "No outputs, no definitions, short cells; its parameters' cell may be long"
    assert not [c for c in cells(nb) if c.get('outputs') or c.get('execution_count')], 'clear the outputs'
    defined = [n.name for n in ast.walk(ast.parse(code(nb))) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert not defined, f'{defined}: definitions belong in nbs/'
    computing = [c for c in cells(nb) if c['cell_type']=='code' and 'parameters' not in c['metadata'].get('tags', [])]
    sources = [''.join(c['source']).strip() for c in computing]
    long = [s for s in sources if len(s.splitlines())>LINES]
    assert not long, f'{len(long)} cells over {LINES} lines; move what computes to nbs/; first: {long[0][:60]!r}'


def test_there_are_phases(): assert PHASES

# -- layered

@pytest.mark.parametrize('module', modules())
def test_imports_point_to_lower_numbers(module):
    nb = modules()[module]
    above = [m for m in imported(code(nb)) if m!=module and number(modules()[m])>=number(nb)]
    assert not above, f'{nb.name} imports {above}'


LAB = [m for m in modules() if m.startswith(('steerlens.steer', 'steerlens.lens'))]
GENERAL = {f'steerlens.subjects.{m}' for m in ('base', 'settle', 'spoken', 'acting')}


@pytest.mark.parametrize('module', LAB)
def test_the_lab_knows_no_particular_subject(module):
    "What is exported imports none and names nothing of one; examples may"
    exported = '\n'.join(c for c in code_cells(modules()[module]) if c.startswith('#| export'))
    known = {m for m in imported(exported) if m.startswith('steerlens.subjects')} - GENERAL
    assert not known, f'{module} imports {known}: what it needs belongs into Steering'
    named = set(re.findall(r'nano_vla|nano_lm|walker|drawer|puck', exported))
    assert not named, f'{module} names {named}'


@pytest.mark.parametrize('nb', PHASES, ids=name)
def test_phase_imports_what_the_snakefile_watches(nb):
    below = ast.literal_eval(re.search(r'^BELOW = (\{.*?\})', (ROOT/'Snakefile').read_text(), re.M)[1])
    above = [m for m in imported(code(nb)) if number(modules()[m])>=below.get(str(number(nb)), 80)]
    assert not above, f'{nb.name} imports {above}: raise its number in BELOW in the Snakefile'


def private(source):
    "Names with a leading underscore that `source` imports from this project"
    for n in ast.walk(ast.parse(source)):
        if not isinstance(n, ast.ImportFrom) or not (n.level or (n.module or '').startswith('steerlens')): continue
        yield from (a.name for a in n.names if re.match(r'_[^_]', a.name))


@pytest.mark.parametrize('path', [*MODULES, *PHASES], ids=name)
def test_no_private_name_crosses_modules(path):
    found = sorted({*private(code(path) if path.suffix=='.ipynb' else path.read_text(encoding='utf-8'))})
    assert not found, f'{path.name} imports {found}: what another module uses has no leading underscore'


# What guesses the kind of a subject, where the subject should say it: `Work`, `Runs`, `looks`
GUESSES = {r'decisions\.parquet': 'a table of one subject',
           r'\bhasattr\((S|module)\b': 'what a module happens to have',
           r'\blen\(args\)': 'how many arguments a batch has',
           r'\bsubjects(\.| import )nano_\w+': 'one subject'}


@pytest.mark.parametrize('path', [p for p in MODULES if p.parent.name in ('acts', 'sae', 'lens')], ids=name)
def test_nobody_guesses_what_a_subject_is(path):
    text = path.read_text(encoding='utf-8')
    found = [what for pattern,what in GUESSES.items() if re.search(pattern, text)]
    assert not found, f'{path.name} asks for {found}; the subject says it, see Work in 10_subjects.base'

# -- declared

def test_every_import_is_declared():
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    asked = [d for ds in (project['dependencies'], *project['optional-dependencies'].values()) for d in ds]
    names = [re.split(r'[^\w.-]', d)[0].lower().replace('_', '-') for d in asked if not d.startswith('steerlens[')]
    assert len(names)==len(set(names)), 'declared twice'
    used, provides = set(), md.packages_distributions()
    for f in MODULES:
        for n in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            if isinstance(n, ast.Import): used |= {a.name.split('.')[0] for a in n.names}
            if isinstance(n, ast.ImportFrom) and not n.level: used.add(n.module.split('.')[0])
    outside = used-sys.stdlib_module_names-{'steerlens'}
    missing = [m for m in outside if not {d.lower().replace('_', '-') for d in provides.get(m, [m])} & set(names)]
    assert not missing, f'{missing}: add to pyproject.toml'


def prose(path):
    if path.suffix=='.md': return path.read_text(encoding='utf-8')
    return '\n'.join(''.join(c['source']) for c in cells(path) if c['cell_type']=='markdown')


@pytest.mark.parametrize('path', [ROOT/'README.md', ROOT/'CONTRIBUTING.md', *NBS, *PHASES], ids=name)
def test_links_lead_somewhere(path):
    "To files of this repository; a phase may be linked from the library by its name alone"
    targets = [t for t in re.findall(r'\]\(([^)#\s]+)', prose(path)) if '://' not in t]
    dead = [t for t in targets if not any((folder/t).exists() for folder in (path.parent, ROOT/'sae_notebooks'))]
    assert not dead, f'{path.name}: {dead}'
