"Code stores whose builds are killed, crowded, starved of disk, or damaged: nothing is lost, the bytes are the same"
import json, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, scipy.sparse as sp, torch
from steerlens.acts.store import Acts, Writer
from steerlens.codes import parts, store
from steerlens.codes.build import build
from steerlens.codes.kernels import by_feature
from steerlens.codes.parts import Entries, Layout, write_part
from steerlens.codes.store import Codes, OutOfRange, write_codes
from steerlens.core import SteerlensError, sha256, write_json
from steerlens.sae.models import new_sae
from conftest import ROOT

SITE = 'lm.0.out'
WORK = """
import os, resource, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from steerlens.acts.store import Acts
from steerlens.codes import parts
from steerlens.codes.build import build
from steerlens.core import SteerlensError
from steerlens.sae.models import new_sae

def work(acts, folder, chunk_rows=100, **how):
    parts.RANGE = 700 # so that there are several
    return build(Acts(acts), new_sae(16, 64, k=4), folder, 'lm.0.out', chunk_rows=chunk_rows, **how)
"""
KILL = """
left = [{n}]
def counted(fn):
    def step(*args, **kw):
        left[0] -= 1
        if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
        return fn(*args, **kw)
    return step
for name in ('pwrite', 'replace', 'rename', 'fsync', 'fdatasync', 'unlink', 'posix_fallocate', 'rmdir'):
    setattr(os, name, counted(getattr(os, name)))
""" # the process kills itself at its n-th step on the disk
SERVER = WORK + """
import json, tempfile
warm = False
for line in sys.stdin:
    q = json.loads(line)
    if not q['wait'] and not warm: # everything is imported and compiled before the first fork
        with tempfile.TemporaryDirectory() as d: work(q['acts'], d)
        warm = True
    if q['wait']: print(os.waitstatus_to_exitcode(os.waitpid(q['wait'], 0)[1]), flush=True)
    elif pid := os.fork(): print(pid, flush=True)
    else:
        os.dup2(os.open(q['said'], os.O_WRONLY|os.O_CREAT|os.O_TRUNC), 2)
        os.dup2(2, 1)
        status = 2
        try:
            exec(q['before'])
            work(q['acts'], q['folder'], **q['how'])
            status = 0
        except SteerlensError as e:
            print(e, file=sys.stderr, flush=True)
            status = 1
        finally: os._exit(status)
"""


class Builds:
    "A process that has the libraries loaded, and forks a build when asked"
    def __init__(self, said):
        self.said,self.n = said, 0
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        env = os.environ | dict(OMP_NUM_THREADS='1')
        self.p = subprocess.Popen([sys.executable, '-c', SERVER], cwd=ROOT, env=env, **pipes)

    def _ask(self, wait=None, **q):
        print(json.dumps(dict(wait=wait, **q)), file=self.p.stdin, flush=True)
        return int(self.p.stdout.readline())

    def start(self, acts, folder, before='', **how):
        self.n += 1
        said = self.said/str(self.n)
        return self._ask(said=str(said), acts=str(acts), folder=str(folder), before=before, how=how), said

    def wait(self, started):
        "Exit status, and what it said"
        pid,said = started
        return self._ask(wait=pid), said.read_text()

    def run(self, *args, **kw): return self.wait(self.start(*args, **kw))


@pytest.fixture(scope='module')
def builds(tmp_path_factory):
    b = Builds(tmp_path_factory.mktemp('said'))
    yield b
    b.p.stdin.close()
    b.p.wait()


def harvest(folder, n=400, shards=3, more=lambda i, rows: rows):
    g = torch.Generator().manual_seed(0)
    with Writer(folder, dict(toy=str(folder)), dict(train=[0, 1, 2], validation=[3]), shards) as w:
        for i in range(shards):
            rows = pd.DataFrame(dict(episode=(np.arange(n)+n*i)//400, step=np.arange(n)))
            w.add('state', more(i, rows), {SITE: torch.randn(n, 16, generator=g)})
            w.commit()
        return w.finish()


@pytest.fixture(scope='module')
def acts(tmp_path_factory): return harvest(tmp_path_factory.mktemp('acts')/'acts').folder


@pytest.fixture(scope='module')
def whole(tmp_path_factory, acts, builds):
    "The store that nothing happened to"
    folder = tmp_path_factory.mktemp('codes')/'whole'
    assert builds.run(acts, folder)==(0, '')
    return folder


def contents(folder):
    files = [f for f in folder.rglob('*') if f.is_file() and f.name not in ('manifest.json', '.lock')]
    return {f.relative_to(folder).as_posix(): sha256(f) for f in files}


def sane(folder, whole):
    "What is there is sound and what it should be; how many rows that are"
    if not (folder/'catalog.json').exists(): return 0
    codes,want = Codes(folder), Codes(whole)
    assert not [line for line in codes.verify(deep=True) if 'still being built' not in line and 'manifest' not in line]
    there = np.zeros(codes.n_rows, bool)
    for p in codes.pieces: there[p.first:p.first+p.n_rows] = True
    for f in range(0, 64, 7):
        rows,values = want.load(f)
        assert np.array_equal(codes.load(f)[0], rows[there[rows]])
        assert np.array_equal(codes.load(f)[1], values[there[rows]])
    return int(there.sum())

# -- killed

def test_twenty_kills(tmp_path, acts, whole, builds):
    folder,when,kills,rows,stages = tmp_path/'codes', random.Random(0), 0, [0], set()
    while kills < 20:
        status,said = builds.run(acts, folder, KILL.format(n=when.randint(1, 90)))
        assert status in (0, -signal.SIGKILL), said
        rows.append(sane(folder, whole))
        assert rows[-1] >= rows[-2], 'a finished part was lost'
        stages.add('merging' if (folder/'.merge').exists() else 'making parts')
        kills += status!=0
        if status==0: # on to another one
            assert contents(folder)==contents(whole)
            shutil.rmtree(folder)
            rows.append(0)
    assert len(stages)==2, stages
    assert builds.run(acts, folder)[0]==0
    assert contents(folder)==contents(whole)
    assert {p.name for p in folder.iterdir()}=={p.name for p in whole.iterdir()}


def test_killed_at_every_step_of_the_end(tmp_path, acts, whole, builds):
    "From the last part on: merging, moving into place, catalog, manifest, clearing up"
    begun = tmp_path/'begun'
    for rank in 1, 2: assert builds.run(acts, begun, rank=rank, world=3)[0]==0
    for n in range(1, 300, 11):
        shutil.copytree(begun, folder := tmp_path/'codes')
        status,_ = builds.run(acts, folder, KILL.format(n=n))
        sane(folder, whole)
        assert builds.run(acts, folder)[0]==0
        assert contents(folder)==contents(whole), n
        assert not Codes(folder).verify(deep=True)
        shutil.rmtree(folder)
        if status==0: break
    assert n > 60, 'there are more steps than that'

# -- crowded

def test_two_and_three_at_once(tmp_path, acts, whole, builds):
    for n in 2, 3:
        started = [builds.start(acts, tmp_path/str(n)) for _ in range(n)]
        assert {builds.wait(s)[0] for s in started}=={0}
        assert contents(tmp_path/str(n))==contents(whole)
        assert not list((tmp_path/str(n)).glob('parts'))


def test_one_of_two_is_killed(tmp_path, acts, whole, builds):
    ends = []
    for n in range(3, 60, 8):
        folder = tmp_path/str(n)
        victim,other = builds.start(acts, folder, KILL.format(n=n)), builds.start(acts, folder)
        ends.append(builds.wait(victim)[0])
        assert builds.wait(other)[0]==0
        assert contents(folder)==contents(whole)
    assert set(ends) <= {0, -signal.SIGKILL} # 0 where the other one had done nearly all by itself
    assert ends.count(-signal.SIGKILL) > 2


def test_it_answers_while_it_is_built(tmp_path, acts, whole, builds):
    "Whoever asks gets what is there: more every time, never anything wrong, also as parts are merged and removed"
    started,rows = builds.start(acts, tmp_path/'codes'), [0]
    until = time.time()+60
    while rows[-1] < 1200 and time.time() < until:
        if (tmp_path/'codes/catalog.json').exists(): rows.append(sane_rows(tmp_path/'codes', whole))
    assert builds.wait(started)[0]==0
    assert rows==sorted(rows)
    assert sane(tmp_path/'codes', whole)==1200


def sane_rows(folder, whole):
    codes = Codes(folder)
    rows,_ = codes.load(3)
    there = sum(p.n_rows for p in codes.pieces)
    assert there==1200 or set(rows) <= set(Codes(whole).load(3)[0])
    return there


def test_another_size_of_chunks(tmp_path, acts, whole, builds):
    assert builds.run(acts, tmp_path/'codes', KILL.format(n=40))[0]==-signal.SIGKILL
    status,said = builds.run(acts, tmp_path/'codes', chunk_rows=170)
    assert status==0 and 'goes on with chunks of 100 rows, as begun' in said, said
    assert contents(tmp_path/'codes')==contents(whole)

# -- starved

@pytest.mark.parametrize('limit', [500, 700, 1000, 4000, 12000])
def test_a_full_disk(tmp_path, acts, whole, builds, limit):
    before = f'resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))'
    status,said = builds.run(acts, tmp_path/'codes', before)
    assert status==1 and said.count('\n')==1 and 'could not be written' in said, said
    sane(tmp_path/'codes', whole)
    assert builds.run(acts, tmp_path/'codes')[0]==0
    assert contents(tmp_path/'codes')==contents(whole)


def test_a_full_file_system(tmp_path, acts, whole, builds):
    (disk := tmp_path/'disk').mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=180k', 'tmpfs', disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode: pytest.skip('nothing can be mounted here')
    try:
        for _ in range(2):
            status,said = builds.run(acts, disk/'codes')
            assert status==1 and said.count('\n')==1 and 'free some space' in said, said
        assert sane(disk/'codes', whole) > 0
        shutil.copytree(disk/'codes', tmp_path/'larger')
    finally: subprocess.run(['umount', disk], check=True)
    assert builds.run(acts, tmp_path/'larger')[0]==0
    assert contents(tmp_path/'larger')==contents(whole)


def test_where_nothing_can_be_written(tmp_path, acts, builds):
    (tmp_path/'file').touch()
    status,said = builds.run(acts, tmp_path/'file'/'codes')
    assert status==1 and 'could not be written' in said

# -- damaged

@pytest.fixture
def begun(tmp_path, acts, builds):
    "Two parts of three"
    for rank in 1, 2: builds.run(acts, tmp_path/'codes', rank=rank, world=3)
    return tmp_path/'codes'


def cut(f): os.truncate(f, f.stat().st_size-3)


def flip(f):
    raw = bytearray(f.read_bytes())
    raw[len(raw)*3//4] ^= 1
    f.write_bytes(raw)


@pytest.mark.parametrize('how', [cut, flip, Path.unlink], ids=['cut', 'flipped', 'lost'])
@pytest.mark.parametrize('name', parts.FILES)
def test_a_damaged_part_is_named_and_made_anew(begun, acts, whole, builds, name, how):
    how(begun/'parts/0002'/name)
    assert any(f'parts/0002/{name}: ' in line for line in store.verify(begun, deep=True))
    status,said = builds.run(acts, begun)
    assert status==1 and f'parts/0002/{name}: ' in said and 'just this chunk is made anew' in said, said
    shutil.rmtree(begun/'parts/0002')
    assert builds.run(acts, begun)[0]==0
    assert contents(begun)==contents(whole)


def test_a_torn_description_of_a_part(begun, acts, builds):
    for text in '{"first": 0', '[]', '{}':
        (begun/'parts/0002/part.json').write_text(text)
        assert any('parts/0002/part.json' in line for line in store.verify(begun)), text
        status,said = builds.run(acts, begun)
        assert status==1 and 'parts/0002/part.json' in said and said.count('\n')==1, said


@pytest.mark.parametrize('text', ['{"entries": {}}', '{"version": 99}', '[1]', '{"vers', ''])
def test_a_catalog_that_is_not_ours_is_left_alone(tmp_path, acts, builds, text):
    (tmp_path/'catalog.json').write_text(text)
    status,said = builds.run(acts, tmp_path)
    assert status==1 and 'catalog.json' in said and said.count('\n')==1, said
    assert (tmp_path/'catalog.json').read_text()==text and not (tmp_path/'parts').exists()


def test_half_a_store_of_another_autoencoder_is_refused(begun, acts):
    was = sha256(begun)
    for sae in new_sae(16, 64, k=4, seed=1), new_sae(16, 65, k=4):
        with pytest.raises(SteerlensError, match='another autoencoder'): build(Acts(acts), sae, begun, SITE)
    with pytest.raises(SteerlensError, match='threshold=None and not 0.5'):
        build(Acts(acts), new_sae(16, 64, k=4), begun, SITE, threshold=.5)
    assert sha256(begun)==was

# -- large

def test_rows_and_features_at_their_limits(tmp_path):
    at,features,bits = np.array([0, 1, 3]), np.array([70000, 0, 70000], 'u4'), np.array([1, 2, 3], 'u4')
    indptr,rows,out = np.zeros(70002, 'i8'), np.zeros(3, 'u4'), np.zeros(3, 'u4')
    by_feature(2**32-2, at, features, bits, indptr, rows, out)
    assert rows.tolist()==[2**32-1, 2**32-2, 2**32-1] and out.tolist()==[2, 1, 3]
    m = sp.csr_matrix(([1., 2], [65536, 65535], [0, 1, 2]), (2, 65537))
    codes = write_codes(tmp_path/'codes', m, None, 65537)
    assert codes.row(0)[0].dtype=='uint32' and codes.row(0)[0][0]==65536 and codes.load(65535)[0].tolist()==[1]
    codes = write_codes(tmp_path/'least', m[:,:65536], None, 65536)
    assert codes.row(1)[0].dtype=='uint16' and codes.row(1)[0][0]==65535
    with pytest.raises(SteerlensError, match='rows: 4,294,967,297; expected at most'):
        store.new_catalog(Layout(8), 2**32+1, 100)


def test_more_entries_than_an_int32_counts(tmp_path):
    "A store whose last feature begins behind 2**31 entries; what comes before is a hole in the file"
    n,folder = 2**31+5, tmp_path/'codes'
    catalog = store.new_catalog(Layout(3), 2**32-1, 100, site='', streams=[], sae={}, acts={})
    write_json(folder/'catalog.json', catalog | dict(finished=True, nnz=n))
    for order,size in dict(by_feature=3, by_row=2**32-1).items():
        (folder/order).mkdir()
        ids = parts.IDS[order]
        for name,dtype,length in ('indptr', 'i8', size+1), (ids, Layout(3).ids(order), n), ('values', 'f2', n):
            f = folder/order/f'{name}.npy'
            head = parts._header(np.dtype(dtype), length)
            f.write_bytes(head)
            os.truncate(f, len(head)+length*np.dtype(dtype).itemsize)
    def put(name, at, array):
        with open(folder/name, 'r+b') as f:
            f.seek(128+at*array.itemsize)
            f.write(array.tobytes())
    put('by_feature/indptr.npy', 2, np.array([n-3, n]))
    put('by_row/indptr.npy', 2**32-1, np.array([n]))
    put('by_feature/rows.npy', n-3, np.array([7, 2**31, 2**32-2], 'u4'))
    put('by_feature/values.npy', n-3, np.array([1, 2, 3], 'f2'))
    rows,values = Codes(folder).load(2)
    assert rows.tolist()==[7, 2**31, 2**32-2] and values.tolist()==[1, 2, 3]
    a = parts._read(folder/'by_feature/rows.npy', 'u4', n, n-2, n)
    assert a.tolist()==[2**31, 2**32-2]

# -- what others got wrong

@pytest.mark.parametrize('chunk', [1, 2, 3, 99, 100, 101, 399, 400, 401, 1199, 1200, 1201])
def test_no_row_is_lost_between_chunks(tmp_path, acts, chunk, monkeypatch):
    monkeypatch.setattr(parts, 'RANGE', 50)
    sae,a = new_sae(16, 8, k=2), Acts(acts)
    n = min(1200, 7*chunk)
    if n < 1200: # so few that as many chunks are soon made
        a = harvest(tmp_path/'few', n=-(-n//3))
    codes = build(a, sae, tmp_path/'codes', SITE, dtype='float32', chunk_rows=chunk)
    with torch.no_grad(): z = sae.encode(a.x(SITE)).numpy()
    got = np.zeros_like(z)
    for f in range(8):
        rows,values = codes.load(f)
        assert (np.diff(rows.astype('i8')) > 0).all()
        got[rows,f] = values
    assert np.abs(got-z).max() < 1e-5 # batches of another size may round another way
    assert np.array_equal(codes.rows.row_id, np.arange(len(z)))
    assert np.array_equal(codes.rows.step, a.rows('state').step)


def test_tables_whose_columns_differ_from_shard_to_shard(tmp_path):
    def more(i, rows): return rows.assign(reward=[None, 1, .5][i], word=[None, 'push', None][i])
    codes = build(harvest(tmp_path/'acts', more=more), new_sae(16, 8, k=2), tmp_path/'codes', SITE, chunk_rows=150)
    assert codes.rows.reward.iloc[[399, 400, 799, 800]].fillna(-1).tolist()==[-1, 1, 1, .5]
    assert codes.rows_of([400, 1199, 0]).word.fillna('').tolist()==['push', '', '']
    assert codes.rows.split.value_counts().to_dict()==dict(train=1200)


@pytest.mark.parametrize('form', ['csr', 'csc', 'coo', 'unsorted', 'int', 'int64 indices', 'explicit zeros', 'chunks'])
def test_matrices_of_every_kind(tmp_path, form):
    g = np.random.default_rng(0)
    dense = np.where(g.random((300, 40)) < .2, g.integers(1, 9, (300, 40)), 0).astype('f8')
    m = sp.csr_matrix(dense)
    if form in ('csc', 'coo'): m = m.asformat(form)
    if form=='int': m = m.astype('i4')
    if form=='int64 indices': m.indices,m.indptr = m.indices.astype('i8'), m.indptr.astype('i8')
    if form=='explicit zeros':
        m.data[::3] = 0
        dense = m.toarray()
    if form=='unsorted':
        for r in range(300):
            s = slice(m.indptr[r], m.indptr[r+1])
            m.indices[s],m.data[s] = m.indices[s][::-1].copy(), m.data[s][::-1].copy()
    given = iter([m[:7], m[7:290], m[290:]]) if form=='chunks' else m
    codes = write_codes(tmp_path/'codes', given, None, 40, chunk_rows=90)
    assert codes.nnz==(dense!=0).sum()
    for f in range(40):
        assert np.array_equal(codes.load(f)[0], dense[:,f].nonzero()[0])
        assert np.array_equal(codes.load(f)[1], dense[codes.load(f)[0],f])
    for r in range(300): assert np.array_equal(codes.row(r)[0], dense[r].nonzero()[0])


def test_a_thousand_wrong_questions(whole):
    "One line each, and never a feature counted from the end"
    codes,g = Codes(whole), random.Random(0)
    odd = [None, True, False, '', '3', b'3', 1.0, 1.5, float('nan'), float('inf'), [], {}, (1,), -1, 64, 2**31]
    odd += [2**63, -2**63, 2**200, np.float32(3), np.array([1, 2]), np.array(3.), np.nan, object(), 'nan', '١', 1j]
    odd += [g.choice([-1, 1])*g.randint(64, 10**g.randint(2, 30)) for _ in range(1000)]
    for i in odd:
        with pytest.raises(OutOfRange) as e: codes.load(i)
        assert '\n' not in str(e.value)
    assert [len(codes.load(i)[0]) for i in (0, 63, np.uint8(63))]==[len(codes.load(i)[0]) for i in (0, 63, 63)]


def test_a_part_of_no_rows_and_a_feature_that_never_fires(tmp_path):
    nothing = Entries(np.zeros(5, 'i8'), np.zeros(0, 'i4'), np.zeros(0, 'f4'))
    write_part(tmp_path/'parts/0000', 0, [nothing], None, Layout(9))
    write_json(tmp_path/'catalog.json', store.new_catalog(Layout(9), 5, 5, site='', streams=[], sae={}, acts={}))
    store.finish(tmp_path, store.read_catalog(tmp_path))
    codes = Codes(tmp_path)
    assert [len(a) for a in codes.load(3)]==[0, 0] and codes.load(3)[0].dtype=='uint32' and len(codes.row(4)[0])==0
    assert codes.verify(deep=True)==[]
