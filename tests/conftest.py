"What the tests share: the project's root, the command line, and one small run of every phase"
import os, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import pytest
from steerlens import params

ROOT = Path(__file__).resolve().parents[1]
SUBJECT = 'nano_vla'
PHASES = params.phases()
RUNS = [(phase, SUBJECT) for phase in PHASES]+[(phase, 'nano_lm') for phase in PHASES[:2]] # as in the Snakefile
BIN = Path(sys.executable).parent
os.chdir(ROOT)


def pytest_configure(config):
    ignored = "The 'utils' module has been deprecated:DeprecationWarning" # what sae-lens imports of TransformerLens
    config.addinivalue_line('filterwarnings', f'ignore:{ignored}')
    config.addinivalue_line('markers', 'slow: needs what `make run` and `make test` do not; run with `-m slow`')
    config.addinivalue_line('markers', 'xdist_group(name): tests that one worker runs')


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "With several workers, the small run and what reads it belong to one; every other file to one as well"
    for item in items:
        name = 'smoke' if 'smoke' in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(name))


def sh(*args, cwd=ROOT, **env):
    "Run a command of this environment; its exit status, output and seconds"
    start = time.perf_counter()
    env = os.environ | dict(PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}') | env
    r = subprocess.run(list(map(str, args)), cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return SimpleNamespace(rc=r.returncode, out=r.stdout, err=r.stderr, seconds=time.perf_counter()-start)


@pytest.fixture(scope='session')
def smoke(tmp_path_factory, pytestconfig):
    "Every phase, run in order with params/smoke.yaml by the command line's own function; returns the folder"
    out = tmp_path_factory.mktemp('smoke')
    shown = pytestconfig.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled
    for phase,subject in RUNS:
        start = time.perf_counter()
        params.execute(phase, subject, [f'out={out}'], ['params/smoke.yaml'], progress=False)
        with shown(): print(f'\n{phase} {subject}: {time.perf_counter()-start:.0f} s', end=' ', flush=True)
    return out
