"Codes in every layout: the same answers; exports and statistics that are killed, crowded or damaged"
import json, os, random, shutil, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd, pytest, scipy.sparse as sp
from steerlens.codes import exports, layouts
from steerlens.codes.backends import CodeStore
from steerlens.codes.exports import export_neurons, export_transposed, export_zarr, import_codes
from steerlens.codes.statistics import Stats, statistics
from steerlens.codes.store import Codes, write_codes
from steerlens.core import SteerlensError, read_json, sha256, write_json
from conftest import ROOT

N,F = 20_500, 300 # three chunks of a transposed array
EXPORTS = dict(zarr=dict(batch_size=3000), transposed={}, neurons={})
SERVER = """
import json, os, sys
from pathlib import Path
from steerlens.codes import backends, counting, exports, layouts, steps
from steerlens.codes.statistics import statistics
from steerlens.codes.store import Codes
from steerlens.core import SteerlensError
exports.CELLS,layouts.CELLS,exports.SOME = 2**19, 2**19, 16 # so that there are many steps
steps.os.sync = lambda: None # a kill loses nothing of what the system has been given

def work(job, codes, dest, **how):
    if job != 'statistics': return getattr(exports, f'export_{job}')(Codes(codes), dest, **how)
    statistics(Codes(codes), top=9, partners=5, step=8000, workers=2)

for line in sys.stdin:
    q = json.loads(line)
    if q['wait']: print(os.waitstatus_to_exitcode(os.waitpid(q['wait'], 0)[1]), flush=True)
    elif pid := os.fork(): print(pid, flush=True)
    else:
        os.dup2(os.open(q['said'], os.O_WRONLY|os.O_CREAT|os.O_TRUNC), 2)
        os.dup2(2, 1)
        status = 2
        try:
            work(**q['how'])
            status = 0
        except SteerlensError as e: print(e, flush=True)
        finally: os._exit(status)
"""


class Jobs:
    "A process that has the libraries loaded, and forks a job when asked"
    def __init__(self, said):
        self.said,self.n = said, 0
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        env = os.environ | dict(OMP_NUM_THREADS='1')
        self.p = subprocess.Popen([sys.executable, '-c', SERVER], cwd=ROOT, env=env, **pipes)

    def _ask(self, wait=None, **q):
        print(json.dumps(dict(wait=wait, **q)), file=self.p.stdin, flush=True)
        return int(self.p.stdout.readline())

    def start(self, job, codes, dest, **how):
        self.n += 1
        said = self.said/str(self.n)
        return self._ask(said=str(said), how=dict(job=job, codes=str(codes), dest=str(dest), **how)), said

    def wait(self, started):
        "Exit status, and what it said"
        pid,said = started
        return self._ask(wait=pid), said.read_text() if said.exists() else '' # a kill may come before the first word


@pytest.fixture(scope='module')
def jobs(tmp_path_factory):
    j = Jobs(tmp_path_factory.mktemp('said'))
    yield j
    j.p.stdin.close()
    j.p.wait()


def make(folder, dtype='float32'):
    g = np.random.default_rng(0)
    m = sp.random(N, F, .02, 'csr', 'f4', g, data_rvs=lambda n: g.integers(1, 200, n)/16)
    m = sp.csr_matrix(m.multiply(g.random(F) > .1)) # some never fire
    m.eliminate_zeros()
    rows = pd.DataFrame(dict(episode=np.arange(N)//50, task=np.array(['push', 'pull', 'lift'])[np.arange(N)%3],
                             tokens=[['abcdef'[i%6], 'xyz'[i%3]] for i in range(N)]))
    return write_codes(folder, m, rows, F, dtype)


@pytest.fixture(scope='module')
def codes(tmp_path_factory): return make(tmp_path_factory.mktemp('codes')/'codes')


@pytest.fixture(scope='module')
def exported(tmp_path_factory, codes):
    "The exports that nothing happened to"
    d = tmp_path_factory.mktemp('exported')
    export_zarr(codes, d/'zarr', **EXPORTS['zarr'])
    export_transposed(codes, d/'transposed')
    export_neurons(codes, d/'neurons')
    return d


def contents(folder):
    files = [f.relative_to(folder) for f in folder.rglob('*') if f.is_file() and f.name != 'manifest.json']
    return {f.as_posix(): sha256(folder/f) for f in files if not any(part[0]=='.' for part in f.parts)}

# -- the same answers

@pytest.mark.parametrize('layout', EXPORTS)
def test_every_layout_answers_alike(codes, exported, layout):
    ours,theirs = CodeStore(codes.folder), CodeStore(exported/layout)
    assert (theirs.n_rows, theirs.n_features)==(N, F)
    assert theirs.backend==dict(zarr='batches').get(layout, layout)
    for f in range(0, F, 50 if layout=='zarr' else 7): pd.testing.assert_frame_equal(theirs[f], ours[f])
    for i in (0, 2999, 3000, 9999, 10_000, N-1): pd.testing.assert_frame_equal(theirs.row(i), ours.row(i))
    columns = ['episode', 'task', 'tokens'] if layout=='zarr' else []
    pd.testing.assert_frame_equal(theirs.top(3, 30, columns), ours.top(3, 30, columns))
    if layout=='zarr':
        some = dict(task='lift', tokens=['a', 'c'])
        pd.testing.assert_frame_equal(theirs.where(4, **some), ours.where(4, **some))


@pytest.mark.parametrize('layout', EXPORTS)
def test_and_comes_back_to_the_byte(tmp_path, codes, exported, layout):
    "Both orders; of the rows, what the layout can hold"
    back = import_codes(exported/layout, tmp_path/'back')
    was,now = contents(codes.folder), contents(back.folder)
    for k in was: assert not k.startswith('by_') or was[k]==now[k]
    if layout=='zarr': pd.testing.assert_frame_equal(back.rows[list(codes.rows)], codes.rows)


def test_half_precision(tmp_path, exported):
    half = make(tmp_path/'half', 'float16')
    export_neurons(half, tmp_path/'neurons')
    for f in range(0, F, 30):
        rows,values = CodeStore(tmp_path/'neurons').load(f)
        assert values.dtype==np.float32 and (values==half.load(f)[1].astype('f4')).all()

# -- killed

def killed(jobs, job, codes, dest, kills, seconds, whole, how):
    "Kill a job so many times, at any moment; each time there is nothing or all of it, and marks are never lost"
    when,marks = random.Random(job), 0
    tmp = dest.with_name(f'.tmp-steps-{dest.name}')
    while kills:
        started = jobs.start(job, codes, dest, **how)
        time.sleep(when.uniform(.005, seconds))
        os.kill(started[0], signal.SIGKILL) # Not waited for yet, so it is still this process
        status,said = jobs.wait(started)
        assert status in (0, -signal.SIGKILL), said
        now = len(list(tmp.glob('.*-*')))
        if dest.exists():
            assert contents(dest)==whole
            shutil.rmtree(dest)
            now = 0
            seconds *= .7
        else:
            assert now >= marks, 'a finished step was lost'
            seconds *= .8 if now > marks+8 else 1.2 if now==marks else 1
        marks = now
        kills -= status != 0
    assert jobs.wait(jobs.start(job, codes, dest, **how))==(0, '')
    assert contents(dest)==whole and not tmp.exists()


@pytest.mark.parametrize('layout', EXPORTS)
def test_an_export_that_is_killed(tmp_path, jobs, codes, exported, layout):
    killed(jobs, layout, codes.folder, tmp_path/'out', 7, .5, contents(exported/layout), EXPORTS[layout])


def test_statistics_that_are_killed(tmp_path, jobs, codes):
    shutil.copytree(codes.folder, tmp_path/'codes')
    folder = tmp_path/'codes'
    assert jobs.wait(jobs.start('statistics', folder, folder/'stats'))==(0, '')
    whole = contents(folder/'stats')
    shutil.rmtree(folder/'stats')
    killed(jobs, 'statistics', folder, folder/'stats', 20, .3, whole, {})
    for f in range(0, F, 50): assert len(Stats(folder).top(f))==min(9, codes.counts[f])


def test_two_at_once(tmp_path, jobs, codes, exported):
    "One works, the other waits; then there is something in its way"
    both = [jobs.start('transposed', codes.folder, tmp_path/'out') for _ in range(2)]
    (first,one),(second,two) = [jobs.wait(j) for j in both]
    assert sorted((first, second))==[0, 2]
    assert 'another process is still at it' in one+two and 'is there already' in one+two
    assert contents(tmp_path/'out')==contents(exported/'transposed')


def test_statistics_at_once(tmp_path, jobs, codes):
    "The second finds them made"
    shutil.copytree(codes.folder, tmp_path/'codes', ignore=shutil.ignore_patterns('stats'))
    both = [jobs.start('statistics', tmp_path/'codes', tmp_path/'codes/stats') for _ in range(2)]
    assert [jobs.wait(j)[0] for j in both]==[0, 0]
    assert len(Stats(tmp_path/'codes').features)==F


def test_half_an_export_of_other_codes_is_not_continued(tmp_path, jobs, codes):
    other = make(tmp_path/'other')
    left = tmp_path/'.tmp-steps-out'
    started = jobs.start('neurons', codes.folder, tmp_path/'out')
    while not list(left.glob('.*-*')) and not (tmp_path/'out').exists(): time.sleep(.001)
    os.kill(started[0], signal.SIGKILL)
    jobs.wait(started)
    if left.exists(): (left/'neuron_9999').mkdir()
    catalog = read_json(other.folder/'catalog.json')
    write_json(other.folder/'catalog.json', catalog | dict(site='elsewhere'))
    shutil.rmtree(tmp_path/'out', ignore_errors=True)
    export_neurons(Codes(other.folder), tmp_path/'out')
    assert not (tmp_path/'out/neuron_9999').exists() and len(list((tmp_path/'out').glob('neuron_*')))==F+1

# -- damaged

def files(array): return sorted(f for f in array.rglob('*') if f.is_file() and not f.name.endswith('.json'))


def test_a_damaged_chunk_is_one_line(tmp_path, exported):
    shutil.copytree(exported/'transposed', tmp_path/'out')
    array,store = tmp_path/'out/transposed_activations.zarr', CodeStore(tmp_path/'out')
    f = next(f for f in range(F) if len(store.load(f)[0]))
    for chunk in files(array/'c'/str(f)): chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(SteerlensError, match='a chunk is damaged') as e: store.load(f)
    assert '\n' not in str(e.value)
    (array/'zarr.json').write_bytes((array/'zarr.json').read_bytes()[:-9])
    with pytest.raises(SteerlensError, match='not a whole zarr array'): CodeStore(tmp_path/'out')


def test_damaged_metadata_is_one_line(tmp_path, exported):
    shutil.copytree(exported/'zarr', tmp_path/'out')
    lines = tmp_path/'out/metadata/batch_0001.parquet'
    lines.write_bytes(lines.read_bytes()[:-9])
    with pytest.raises(SteerlensError, match='batch_0001.parquet: not a whole parquet file'):
        CodeStore(tmp_path/'out').top(3)
    lines.unlink()
    with pytest.raises(SteerlensError, match=r'batch \[1\] of 7 is missing'): CodeStore(tmp_path/'out').top(3)

# -- many ask

def test_many_threads_ask_one_store(codes, exported):
    statistics(codes, top=9, partners=5)
    stores = [CodeStore(codes.folder), *(CodeStore(exported/l) for l in EXPORTS if l!='zarr')]
    right = {f: stores[0].top(f, 5, []) for f in range(24)}
    def ask(i):
        s,f = stores[i%3], i%24
        pd.testing.assert_frame_equal(s.top(f, 5, []), right[f])
        n = stores[0].sql('SELECT count(*) AS n FROM codes JOIN rows USING (row_id)', [f]).n[0]
        assert n==len(s.load(f)[0])==stores[0].stats.feature(f)['count']
    with ThreadPoolExecutor(8) as pool: list(pool.map(ask, range(96)))


def test_memory_stays_the_same(tmp_path, monkeypatch):
    "A dense layout is written and read in tiles"
    g = np.random.default_rng(0)
    m = sp.random(12_000, 4096, .005, 'csr', 'f4', g)
    codes = write_codes(tmp_path/'codes', m, None, 4096, 'float32')
    monkeypatch.setattr(exports, 'CELLS', 2**20)
    monkeypatch.setattr(layouts, 'CELLS', 2**20)
    most,stop = [0], threading.Event()
    def watch():
        while not stop.wait(.005): most[0] = max(most[0], anonymous())
    before,thread = anonymous(), threading.Thread(target=watch)
    thread.start()
    export_zarr(codes, tmp_path/'data', batch_size=5000, chunk_size=50)
    import_codes(tmp_path/'data', tmp_path/'back')
    stop.set()
    thread.join()
    assert most[0]-before < 150, f'{most[0]-before:.0f} MB for tiles of 4 MB, where all of it dense is 197 MB'


def anonymous():
    "Memory of this process that is no file, MB"
    said = Path('/proc/self/status').read_text()
    return int(said.split('RssAnon:')[1].split()[0])/1024
