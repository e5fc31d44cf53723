"What the tests share: the project's root, the command line, and one small run of every phase"
import fcntl, os, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import pytest
from steerlens import params
from steerlens.running import execute

ROOT = Path(__file__).resolve().parents[1]
SUBJECT = 'nano_vla'
PHASES = params.phases()
RUNS = [(phase, SUBJECT) for phase in PHASES[:4]]+[(phase, 'nano_lm') for phase in PHASES[:3]] # as in the Snakefile
RUNS += [('5_codes', 'nano_lm'), ('7_explore', 'nano_lm'), ('8_decoders', 'nano_lm'), ('9_explain', 'nano_lm'),
         ('6_studio', 'walker')]
RUNS += [(phase, 'set_model') for phase in PHASES[:2]]
if 'STEERLENS_SLOW' in os.environ: RUNS += [('4_tokens', 'nano_lm'), ('4_tokens', 'set_model')]
BIN = Path(sys.executable).parent
os.chdir(ROOT)


def pytest_configure(config):
    ignored = "The 'utils' module has been deprecated:DeprecationWarning" # what sae-lens imports of TransformerLens
    config.addinivalue_line('filterwarnings', f'ignore:{ignored}')
    config.addinivalue_line('markers', 'slow: takes a minute; run by STEERLENS_SLOW=1 pytest')


SMOKE = 'tests/test_phases.py', 'tests/test_steering.py' # what reads the small run


LONG = [f'tests/test_{n}.py' for n in ('own_models', 'faults', 'studio_page', 'notebook_pages', 'repo')] # a minute each


def pytest_collection_modifyitems(items):
    "What is slow is left out unless asked for; the longest files first, or one worker is left with them at the end"
    for item in items if 'STEERLENS_SLOW' not in os.environ else ():
        if item.get_closest_marker('slow'): item.add_marker(pytest.mark.skip(reason='slow: STEERLENS_SLOW=1 runs it'))
    order = [*SMOKE, *LONG]
    def place(item):
        file = item.nodeid.split('::')[0]
        return order.index(file) if file in order else len(order)
    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With several workers each file is one worker's; those of the small run, the longest, are one's together and first"
    from xdist.scheduler import LoadScopeScheduling
    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split('::')[0]
            return 'smoke' if file in SMOKE else file
    return ByFile(config, log)


def sh(*args, cwd=ROOT, **env):
    "Run a command of this environment; its exit status, output and seconds"
    start = time.perf_counter()
    env = os.environ | dict(PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}') | env
    r = subprocess.run(list(map(str, args)), cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return SimpleNamespace(rc=r.returncode, out=r.stdout, err=r.stderr, seconds=time.perf_counter()-start)


def killed(do, moments, after):
    "Do it in a process that ends itself before the `after`th call of one of `moments`, (owner, name); its exit status"
    if pid := os.fork(): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left,status = [after], 1
    def watched(fn):
        def call(*args, **kw):
            left[0] -= 1
            if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
            return fn(*args, **kw)
        return call
    try:
        for at,name in moments: setattr(at, name, watched(getattr(at, name)))
        do()
        status = 0
    finally: os._exit(status)


def run_phases(out, shown):
    "Every phase in order with params/smoke.yaml, by the command line's own function"
    for phase,subject in RUNS:
        start = time.perf_counter()
        execute(phase, subject, [f'out={out}'], ['params/smoke.yaml'], progress=False)
        with shown(): print(f'\n{phase} {subject}: {time.perf_counter()-start:.0f} s', end=' ', flush=True)


@pytest.fixture(scope='session')
def smoke(tmp_path_factory, pytestconfig):
    "The folder of the small run of every phase, made once for all workers"
    several = 'PYTEST_XDIST_WORKER' in os.environ
    base = tmp_path_factory.getbasetemp().parent if several else tmp_path_factory.getbasetemp()
    out,done = base/'smoke', base/'smoke.done'
    with open(base/'smoke.lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        if not done.exists():
            run_phases(out, pytestconfig.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled)
            done.touch()
    return out
