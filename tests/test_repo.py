"The repository keeps its promises: exported, clean, fresh, quick to import, planned; what reading files can't tell"
import filecmp, re, shutil, sys
import pytest
from conftest import ROOT, sh
from test_house import PHASES, modules


@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev works on"
    for d in ('nbs', 'sae_notebooks', 'steerlens'):
        shutil.copytree(ROOT/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for f in ('settings.ini', 'pyproject.toml', 'README.md'): shutil.copy(ROOT/f, tmp_path)
    return tmp_path


def files(folder):
    found = [p for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    return {p.relative_to(folder) for p in found}


def test_export_reproduces_the_library(copy):
    shutil.rmtree(copy/'steerlens')
    assert sh('nbdev_export', cwd=copy).rc==0
    assert files(copy/'steerlens')==files(ROOT/'steerlens'), 'run nbdev_export; remove modules that no notebook exports'
    made,kept = copy/'steerlens', ROOT/'steerlens'
    changed = [f for f in files(kept) if not filecmp.cmp(made/f, kept/f, shallow=False)]
    assert not changed, f'{changed}: not what nbdev_export makes; edit the notebook and run nbdev_export'


def test_notebooks_are_clean(copy):
    assert sh('nbdev_clean', cwd=copy).rc==0
    assert sh('nbdev_clean', '--fname', 'sae_notebooks', cwd=copy).rc==0
    notebooks = [p for d in ('nbs', 'sae_notebooks') for p in sorted((ROOT/d).glob('*.ipynb'))]
    dirty = [p.name for p in notebooks if p.read_bytes()!=(copy/p.parent.name/p.name).read_bytes()]
    assert not dirty, f'{dirty}: run nbdev_clean'


@pytest.mark.parametrize('nb', PHASES, ids=lambda p: p.stem)
def test_a_phase_declares_what_every_phase_has(nb):
    from steerlens.params import schema
    assert {'subject', 'out'} <= set(schema(nb.stem).model_fields)


def test_no_conflict_markers():
    names = sh('git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z').out.split('\0')
    mark = re.compile(rb'^[ "]*(<{7}|>{7}) ', re.M)
    assert not [n for n in names if n and (ROOT/n).is_file() and mark.search((ROOT/n).read_bytes())]


TIMED = """
import importlib, sys, time, torch
for m in sys.argv[1:]:
    start = time.process_time()
    importlib.import_module(m)
    print(m, round(time.process_time()-start, 2))
"""


def test_modules_import_quickly():
    "Every module within a second of processor time beyond torch"
    said = sh(sys.executable, '-c', TIMED, *modules())
    assert said.rc==0, said.err
    print(said.out)
    assert all(float(l.split()[1])<1 for l in said.out.splitlines()), said.out


def test_readme_is_fresh():
    said = sh(sys.executable, 'site/build.py', '--readme-only', '--check')
    assert said.rc==0, said.out+said.err


def test_snakemake_plans_every_phase(tmp_path):
    config = ['--config', f'out={tmp_path}', 'params=params/smoke.yaml', 'everything=yes']
    said = sh('snakemake', '-n', '--nolock', '--profile', 'profiles/local', *config)
    assert said.rc==0, said.out+said.err
    for nb in PHASES: assert f'phase_{nb.stem}' in said.out+said.err


def test_the_docs_refuse_leftover_markdown(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'site'))
    from links import leftovers
    def page(body): return f'<html><title>`x`</title><article>{body}</article></html>'
    fine = '<p>a <a href="x.html"><code>Stream</code></a>, 2**63 <code>a ** b</code></p><pre>[x](y.md) `z` **b**</pre>'
    assert leftovers(page(fine))==[]
    wrong = {'a link': '<p><code>[Stream](acts.stream.md#stream)</code></p>',
             'bold': '<p>so **that**</p>',
             'code': '<p>the `loss`</p>',
             'a table': '<p>\n| a | b |\n</p>',
             'attributes': '<h3>x { #x .api }</h3>',
             'a block': '<p>\n/// note</p>'}
    for what,body in wrong.items(): assert leftovers(page(body))[0][0]==what, what


def test_the_docs_link_names_that_mean_one_thing(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'site'))
    from links import link_names, unambiguous
    anchors = {'acts': ['Stream', 'loss', 'save'], 'sae': ['save', 'train']}
    where = unambiguous(anchors, ['def step(loss): return dict(rows=1)', "__all__ = ['train']"])
    # `loss` is an argument, `save` is defined twice
    assert where=={'Stream': ('acts', 'stream'), 'train': ('sae', 'train')}
    text = 'A `Stream`, its [`Stream`](x.md), `loss`\n\n### `Stream`\n\n```\n`Stream`\n```'
    assert link_names(text, 'sae', where)==text.replace('A `Stream`', 'A [`Stream`](acts.md#stream)')
