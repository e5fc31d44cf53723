"Harvests that are killed, crowded, starved of disk, or damaged afterwards: nothing is lost, the bytes are the same"
import errno, fcntl, json, os, random, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file, save_file
from steerlens.acts.store import Acts
from steerlens.core import SteerlensError, sha256
from conftest import ROOT

WORK = """
import os, sys, time
import pandas as pd, torch
torch.set_num_threads(1)
from steerlens.subjects.base import Batch, Subject
from steerlens.acts.harvest import harvest

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(16,16) for _ in range(2)])
    def forward(self, x):
        for l in self.layers: x = l(x)
        return x

class Batches:
    "Made when asked for, each after a pause"
    def __init__(self, n, pause): self.n,self.pause = n,pause
    def __len__(self): return self.n
    def __getitem__(self, i):
        time.sleep(self.pause)
        g = torch.Generator().manual_seed(i)
        rows = pd.DataFrame(dict(episode=range(4*i, 4*i+4), step=i, task='push'))
        return Batch((torch.randn(4, 24, 16, generator=g),), rows, {'lm': [['w']*24]*4})

def work(folder, n=48, pause=0.):
    torch.manual_seed(0)
    toy = Subject(Model(), aliases={'lm': 'layers'}, token_types={'lm': ('instruction',)*20 + ('state',)*4})
    splits = dict(train=list(range(4, 4*n)), validation=[0,1,2,3])
    return harvest(toy, Batches(n, pause), ['lm.0.out', 'lm.1.out'], folder, dict(toy=1), splits, per_shard=2)
"""
exec(WORK)


def contents(folder):
    files = [f for f in folder.rglob('*') if f.is_file() and f.name not in ('manifest.json', '.lock')]
    return {f.relative_to(folder).as_posix(): sha256(f) for f in files}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The harvest that nothing happened to"
    folder = tmp_path_factory.mktemp('acts')/'whole'
    work(folder)
    return folder


def sane(folder):
    "Everything that the catalog lists is whole, to the last byte; how many shards that are"
    if not (folder/'catalog.json').exists(): return 0
    acts = Acts(folder, partial=True)
    assert acts.verify(deep=True)==[]
    return len(acts.catalog['shards'])


SERVER = WORK + """
import json, tqdm, pyarrow.parquet
from steerlens.core import SteerlensError
for line in sys.stdin:
    q = json.loads(line)
    if q['wait']: print(os.waitstatus_to_exitcode(os.waitpid(q['wait'], 0)[1]), flush=True)
    elif pid := os.fork(): print(pid, flush=True)
    else:
        os.dup2(os.open(f"{q['said']}.{os.getpid()}", os.O_WRONLY|os.O_CREAT), 2)
        status = 2
        try:
            exec(q['before'])
            work(q['folder'], pause=q['pause'])
            status = 0
        except SteerlensError as e:
            print(e, file=sys.stderr, flush=True)
            status = 1
        finally: os._exit(status)
"""


class Harvests:
    "A process that has the libraries loaded, and forks a harvest when asked"
    def __init__(self, said):
        self.said = said
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        env = os.environ | dict(OMP_NUM_THREADS='1')
        self.p = subprocess.Popen([sys.executable, '-c', SERVER], cwd=ROOT, env=env, **pipes)

    def _ask(self, wait=None, **q):
        print(json.dumps(dict(wait=wait, said=str(self.said), **q)), file=self.p.stdin, flush=True)
        return int(self.p.stdout.readline())

    def start(self, folder, pause=0, before=''): return self._ask(folder=str(folder), pause=pause, before=before)

    def wait(self, pid):
        "Exit status, and what it said beside its progress bar"
        status,said = self._ask(wait=pid), (self.said.parent/f'{self.said.name}.{pid}').read_text()
        return status, '\n'.join(l for l in re.split(r'[\r\n]', said) if l.strip() and not re.search(r'\d/\d+ \[', l))


@pytest.fixture(scope='module')
def harvests(tmp_path_factory):
    h = Harvests(tmp_path_factory.mktemp('said')/'said')
    yield h
    h.p.stdin.close()
    h.p.wait()


def test_twenty_kills(tmp_path, whole, harvests):
    folder,when,kills,shards,longest,begun = tmp_path/'acts', random.Random(0), 0, [0], .3, time.perf_counter()
    while kills < 20:
        pid = harvests.start(folder, .02) # Two batches to a shard: a shard about every 50 ms
        time.sleep(when.uniform(.02, longest))
        os.kill(pid, signal.SIGKILL) # Not waited for yet, so it is still this process
        status,_ = harvests.wait(pid)
        assert status in (0, -signal.SIGKILL)
        shards.append(sane(folder))
        assert shards[-1] >= shards[-2], 'a finished shard was lost'
        longest *= .8 if shards[-1] > shards[-2] else 1.3 # on any machine a few shards between kills, or none
        if not status: # It had finished: on to another one
            assert contents(folder)==contents(whole)
            shutil.rmtree(folder)
            shards.append(0)
        kills += status!=0
    assert len(set(shards)) > 5, f'the kills fell all in the same place: {shards}'
    work(folder)
    assert contents(folder)==contents(whole)
    assert not [f for f in folder.rglob('.*') if f.name!='.lock']
    print(f'shards after each kill: {shards}; {time.perf_counter()-begun:.1f} s')


SMALL = """
import resource
get = Batches.__getitem__
def small(self, i):
    if i==6: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return get(self, i)
Batches.__getitem__ = small
""".strip()


def test_a_full_disk_keeps_what_was_finished(tmp_path, whole, harvests):
    "Played by a limit on the size of files, which comes in the sixth batch"
    limit = SMALL
    folder = tmp_path/'acts'
    rc,said = harvests.wait(harvests.start(folder, 0, limit))
    assert rc==1 and said.count('\n')==0 and str(folder) in said and 'could not be written' in said, said
    assert sane(folder)==3
    assert not list(folder.rglob('.tmp-*'))
    work(folder)
    assert contents(folder)==contents(whole)


@pytest.mark.parametrize('call', ['open', 'pwrite'])
def test_a_disk_that_takes_no_direct_writes(tmp_path, whole, monkeypatch, call):
    refused,real = [], getattr(os, call)
    def picky(target, what, *rest):
        direct = what if call=='open' else fcntl.fcntl(target, fcntl.F_GETFL)
        if direct & getattr(os, 'O_DIRECT', 0):
            refused.append(target)
            raise OSError(errno.EINVAL, 'Invalid argument')
        return real(target, what, *rest)
    monkeypatch.setattr(os, call, picky)
    work(tmp_path/'acts')
    assert refused or not hasattr(os, 'O_DIRECT')
    assert contents(tmp_path/'acts')==contents(whole)


def test_a_full_file_system(tmp_path, whole, harvests):
    disk = tmp_path/'disk'
    disk.mkdir()
    size = sum(f.stat().st_size for f in whole.rglob('*') if f.is_file())
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size//2}', 'tmpfs', disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode: pytest.skip('nothing can be mounted here')
    try:
        folder = disk/'acts'
        rc,said = harvests.wait(harvests.start(folder))
        assert rc==1 and said.count('\n')==0 and 'free some space' in said, said
        n = sane(folder)
        assert n > 0
        (ballast := disk/'ballast').write_bytes(bytes(max(0, shutil.disk_usage(disk).free-2**15)))
        rc,said = harvests.wait(harvests.start(folder))
        assert rc==1 and said.count('\n')==0 and 'free some space' in said, said
        assert sane(folder) >= n
        ballast.unlink()
        shutil.copytree(folder, tmp_path/'larger')
    finally: subprocess.run(['umount', disk], check=True)
    work(tmp_path/'larger')
    assert contents(tmp_path/'larger')==contents(whole)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(SteerlensError, match='file/acts: could not be written'): work(tmp_path/'file'/'acts')


@pytest.mark.skipif(os.geteuid()==0, reason='root may write everywhere')
def test_a_folder_that_is_not_ours(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(SteerlensError, match='could not be written'): work(tmp_path/'acts')
    finally: tmp_path.chmod(0o755)


def test_two_at_once(tmp_path, whole, harvests):
    both = [harvests.start(tmp_path/'acts', .02) for _ in range(2)]
    said = [harvests.wait(p) for p in both]
    assert [rc for rc,_ in said]==[0, 0], said
    assert sorted('waiting for it to end' in err for _,err in said)==[False, True], said
    assert contents(tmp_path/'acts')==contents(whole)


X,ROWS = 'instruction/lm.1.out_0004.safetensors', 'state/rows_0004.parquet'


def swap(a, b):
    spare = a.with_name('spare')
    for x,y in ((a, spare), (b, a), (spare, b)): x.rename(y)


def rewrite(f, change):
    "The same file with another matrix, named as before"
    from safetensors import safe_open
    with safe_open(f, 'pt') as s: about = s.metadata()
    save_file({'x': change(load_file(f)['x'])}, f, about)


def poke(f, byte):
    raw = bytearray(f.read_bytes())
    raw[byte:byte+4 if byte+4 else None] = np.float32('nan').tobytes()
    f.write_bytes(raw)


def permute(f):
    r = pd.read_parquet(f)
    order = [0, *range(len(r)-1, 0, -1)]
    r.assign(**{c: r[c].to_numpy()[order] for c in r if c!='row_id'}).to_parquet(f, index=False)


DAMAGE = { # what: (file, how, what is said)
    'truncated': (X, lambda f: os.truncate(f, 5000), 'damaged'),
    'empty': (X, lambda f: os.truncate(f, 0), 'damaged'),
    'lost': (X, Path.unlink, 'missing'),
    'another width': (X, lambda f: rewrite(f, lambda x: torch.cat([x, x], 1)), 'where the catalog says'),
    'fewer rows': (X, lambda f: rewrite(f, lambda x: x[1:].clone()), 'where the catalog says'),
    'another dtype': (X, lambda f: rewrite(f, torch.Tensor.half), 'float16 where the catalog says float32'),
    'another shard': (X, lambda f: swap(f, f.with_name('lm.1.out_0007.safetensors')), 'was it moved?'),
    'another site': (X, lambda f: swap(f, f.with_name('lm.0.out_0004.safetensors')), 'was it moved?'),
    'no safetensors': (X, lambda f: f.write_text('hello'), 'damaged'),
    'rows truncated': (ROWS, lambda f: os.truncate(f, 100), 'damaged'),
    'rows lost': (ROWS, Path.unlink, 'missing'),
    'fewer in the table': (ROWS, lambda f: pd.read_parquet(f)[1:].to_parquet(f, index=False), 'damaged'),
    'rows of another shard': (ROWS, lambda f: swap(f, f.with_name('rows_0007.parquet')), 'rows_0004.parquet: '),
}


@pytest.fixture
def copy(tmp_path, whole):
    shutil.copytree(whole, tmp_path/'acts')
    return tmp_path/'acts'


@pytest.mark.parametrize('what', DAMAGE)
def test_damage_is_named_and_repaired(copy, whole, what):
    name,how,says = DAMAGE[what]
    how(copy/name)
    said = Acts(copy, partial=True).verify()
    assert {l.split(': ')[0] for l in said} >= {str(copy/name)} and all('\n' not in l for l in said)
    assert len(said)==(2 if 'another s' in what or 'of another' in what else 1)
    assert says in said[0]
    with pytest.raises(SteerlensError) as e: Acts(copy)
    assert str(e.value)==said[0]
    touched = {f: f.stat().st_mtime_ns for f in copy.rglob('*_0005.*')}
    work(copy)
    assert contents(copy)==contents(whole)
    assert touched=={f: f.stat().st_mtime_ns for f in touched}, 'shards were made again that were not damaged'


def spoil(f): poke(f, -4)
def reorder(f): rewrite(f, lambda x: x.flip(0))


@pytest.mark.parametrize('name,how', [(X, spoil), (X, reorder), (ROWS, permute)],
                         ids=['NaN', 'rows reordered', 'row table reordered'])
def test_what_only_a_deep_check_finds(copy, whole, name, how):
    how(copy/name)
    said = Acts(copy, partial=True).verify(deep=True)
    assert len(said)==1 and said[0].startswith(f'{copy/name}: damaged'), said
    (copy/name).unlink() # As the line says
    work(copy)
    assert contents(copy)==contents(whole)
