"The repository keeps its own rules: exported, clean, layered, declared, fresh"
import ast, filecmp, importlib.metadata as md, json, re, shutil, sys, tomllib
from pathlib import Path
import pytest
from conftest import ROOT, sh

NBS = sorted((ROOT/'nbs').glob('*.ipynb'))
PHASES = sorted((ROOT/'sae_notebooks').glob('*.ipynb'))


def cells(path): return json.loads(path.read_text())['cells']
def code(path): return '\n'.join(re.sub(r'^[%!].*', '', ''.join(c['source']), flags=re.M) for c in cells(path) if c['cell_type']=='code')
def number(path): return int(path.name.split('_')[0])


def modules():
    "{module: the notebook it is exported from}"
    found = {}
    for nb in NBS:
        for name in re.findall(r'^#\| *default_exp ([\w.]+)', code(nb), re.M): found[f'steerlens.{name}'] = nb
    return found


def imported(source):
    "The modules of this project that a notebook's code imports, at its top or anywhere inside"
    names = set()
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Import): names |= {a.name for a in n.names}
        if isinstance(n, ast.ImportFrom): names |= {n.module} | {f'{n.module}.{a.name}' for a in n.names}
    return names & set(modules())


@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev works on"
    for d in ('nbs', 'sae_notebooks', 'steerlens'):
        shutil.copytree(ROOT/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for f in ('settings.ini', 'pyproject.toml', 'README.md'): shutil.copy(ROOT/f, tmp_path)
    return tmp_path


def files(folder): return {p.relative_to(folder) for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts}


def test_export_reproduces_the_library(copy):
    shutil.rmtree(copy/'steerlens')
    assert sh('nbdev_export', cwd=copy).rc==0
    assert files(copy/'steerlens')==files(ROOT/'steerlens'), 'run nbdev_export; remove modules that no notebook exports'
    changed = [f for f in files(ROOT/'steerlens') if not filecmp.cmp(copy/'steerlens'/f, ROOT/'steerlens'/f, shallow=False)]
    assert not changed, f'{changed}: not what nbdev_export makes; edit the notebook and run nbdev_export'


def test_notebooks_are_clean(copy):
    assert sh('nbdev_clean', cwd=copy).rc==0
    assert sh('nbdev_clean', '--fname', 'sae_notebooks', cwd=copy).rc==0
    dirty = [p for d in ('nbs', 'sae_notebooks') for p in sorted((ROOT/d).glob('*.ipynb')) if p.read_bytes()!=(copy/d/p.name).read_bytes()]
    assert not dirty, f'{[p.name for p in dirty]}: run nbdev_clean'


def test_there_are_phases(): assert PHASES


@pytest.mark.parametrize('nb', PHASES, ids=lambda p: p.stem)
def test_phase_notebook(nb):
    "No outputs, no functions, the two parameters that every phase has"
    assert not [c for c in cells(nb) if c.get('outputs') or c.get('execution_count')], 'clear the outputs'
    assert not [n.name for n in ast.walk(ast.parse(code(nb))) if isinstance(n, (ast.FunctionDef, ast.ClassDef))], 'definitions belong in nbs/'
    from steerlens.params import schema
    assert {'subject', 'out'} <= set(schema(nb.stem).model_fields)


def test_no_conflict_markers():
    names = sh('git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z').out.split('\0')
    mark = re.compile(rb'^[ "]*(<{7}|>{7}) ', re.M)
    assert not [n for n in names if n and (ROOT/n).is_file() and mark.search((ROOT/n).read_bytes())]


@pytest.mark.parametrize('module', modules())
def test_imports_point_to_lower_numbers(module):
    nb = modules()[module]
    above = [m for m in imported(code(nb)) if m!=module and number(modules()[m])>=number(nb)]
    assert not above, f'{nb.name} imports {above}'


@pytest.mark.parametrize('nb', PHASES, ids=lambda p: p.stem)
def test_phase_imports_what_the_snakefile_watches(nb):
    below = ast.literal_eval(re.search(r'^BELOW = (\{.*?\})', (ROOT/'Snakefile').read_text(), re.M)[1])
    above = [m for m in imported(code(nb)) if number(modules()[m])>=below.get(str(number(nb)), 80)]
    assert not above, f'{nb.name} imports {above}: raise its number in BELOW in the Snakefile'


def test_every_import_is_declared():
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    asked = [d for ds in (project['dependencies'], *project['optional-dependencies'].values()) for d in ds]
    names = [re.split(r'[^\w.-]', d)[0].lower().replace('_', '-') for d in asked if not d.startswith('steerlens[')]
    assert len(names)==len(set(names)), 'declared twice'
    used, provides = set(), md.packages_distributions()
    for f in (ROOT/'steerlens').rglob('*.py'):
        for n in ast.walk(ast.parse(f.read_text())):
            if isinstance(n, ast.Import): used |= {a.name.split('.')[0] for a in n.names}
            if isinstance(n, ast.ImportFrom) and not n.level: used.add(n.module.split('.')[0])
    missing = [m for m in used - sys.stdlib_module_names - {'steerlens'} if not {d.lower().replace('_', '-') for d in provides.get(m, [m])} & set(names)]
    assert not missing, f'{missing}: add to pyproject.toml'


def test_modules_import_quickly():
    "Every module within a second of processor time beyond torch"
    timed = '\n'.join(['import importlib, time, torch', f'for m in {list(modules())!r}:',
        '    t = time.process_time(); importlib.import_module(m); print(m, round(time.process_time()-t, 2))'])
    said = sh(sys.executable, '-c', timed)
    assert said.rc==0, said.err
    print(said.out)
    assert all(float(l.split()[1])<1 for l in said.out.splitlines()), said.out


def test_readme_is_fresh():
    said = sh(sys.executable, 'site/build.py', '--readme-only', '--check')
    assert said.rc==0, said.out+said.err


def test_snakemake_plans_every_phase(tmp_path):
    said = sh('snakemake', '-n', '--nolock', '--profile', 'profiles/local', '--config', f'out={tmp_path}', 'params=params/smoke.yaml')
    assert said.rc==0, said.out+said.err
    for nb in PHASES: assert f'phase_{nb.stem}' in said.out+said.err
