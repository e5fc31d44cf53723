"""Sparse codes on disk, built, asked, summed up and served: ours beside the published layouts and delphi's cache

    python benchmarks/store.py [--quick] [--json FILE] [--only build,encode,query,statistics,server]
"""
import asyncio, gc, importlib.util, os, random, re, shutil, subprocess, sys, time
from functools import cache
from pathlib import Path
from types import ModuleType
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
import numpy as np, pandas as pd
import torch
from scipy import sparse
from steerlens.acts.store import Writer
from steerlens.codes.backends import CodeStore
from steerlens.codes.build import build
from steerlens.codes.exports import export_neurons, export_transposed, zarr_out
from steerlens.codes.layouts import StorageConfig, Transposed
from steerlens.codes.statistics import statistics
from steerlens.codes.store import Codes, write_codes
from steerlens.codes.encode import encoder, usable
from steerlens.core import write_json
from steerlens.sae.models import new_sae
from table import Peak, args, race, run, timed

ARGS = args(__doc__)
QUICK = ARGS.quick
F,K = 16_384, 32                              # Latents, and active ones a row
SIZES = [62_500, 125_000, 250_000] if QUICK else [250_000, 500_000, 1_000_000] # Rows: three sizes, the largest is asked
N = SIZES[-1]
AIMS = [26_400, 160_000] if QUICK else [105_700, 650_000] # Draws of the two latents; of those in a row one counts
D = 64                                        # Width of the site in `encode`
SOME = 64                                     # Latents that the layouts of one file a latent are written for
SECONDS = 5 if QUICK else 60                  # Of serving
TIMES = 200                                   # Queries of a kind


def fresh(path):
    shutil.rmtree(path, ignore_errors=True)
    return path


def row(name, unit, ours, peer, peer_name, mb=0, bar=None, met=None):
    found = dict(name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, memory_mb=mb)
    return found | (dict(bar=bar, met=bool(met)) if bar else {})


# Codes with the frequencies of language: a few latents in every second or tenth row, most in one of a thousand

def frequencies():
    "Share of the entries that each latent has, [F]"
    p = 1/(np.arange(F)+50)**1.05
    p = p/p.sum()*(N*K-sum(AIMS))
    p[100],p[7000] = AIMS # these two exactly as often as was asked for, on average
    return p/p.sum()


def matrix(rows, seed):
    "CSR of so many rows, float32, K entries a row less the duplicates"
    g = np.random.default_rng(seed)
    features = np.sort(g.choice(F, rows*K, p=frequencies()).reshape(rows, K).astype('i4'), axis=1)
    new = np.ones_like(features, bool)
    new[:,1:] = features[:,1:]!=features[:,:-1]
    values = g.gamma(2, 1, int(new.sum())).astype('f4')
    return sparse.csr_matrix((values, features[new], np.r_[0, np.cumsum(new.sum(1))]), (rows, F))


CHUNK = 62_500
def chunks(rows):
    "So many rows, made again each time"
    for i in range(0, rows, CHUNK): yield matrix(min(CHUNK, rows-i), i)


def lines(rows):
    "Who the rows are"
    i = np.arange(rows)
    return pd.DataFrame(dict(episode=i//100, step=i%100, task=np.array(['push','pull','open','close'])[i//100%4]))


@cache
def made(root):
    "The largest store, float16, on disk"
    folder = write_codes(root/'codes', chunks(N), lines(N), F, chunk_rows=CHUNK).folder
    os.sync() # pages that are not on disk yet can't be dropped
    return folder


def store(root): return Codes(made(root))


# Build

HERE = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path[1:]))


def build_rows(root):
    "Codes that are there already into a store, three sizes, each in a process of its own"
    found = []
    for n in SIZES:
        code = f'from store import *; print(json(build_once(Path({str(root/"size")!r}), {n})))'
        out = subprocess.run([sys.executable, '-c', code, *sys.argv[1:]], cwd=Path(__file__).parent, text=True,
                             check=True, stdout=subprocess.PIPE, env=HERE)
        seconds,nnz,mb = map(float, out.stdout.split('|')[1:4])
        found.append((n, nnz, seconds, mb))
        shutil.rmtree(root/'size')
    peers = [transposed_rate(root), delphi_rate(root)]
    rows = []
    for n,nnz,seconds,mb in found:
        for peer,name in peers:
            named,met = f'build, both orders, {nnz/1e6:.1f} M nonzeros', nnz/seconds>=5e6 and mb<=2000
            rows.append(row(named, 'M nonzero/s', nnz/seconds/1e6, peer, name, mb, '5 M/s, 2 GB', met))
    (_,a,s,_),(_,b,t,_) = found[0], found[-1]
    rows.append(row('time a nonzero', 'ns', t/b*1e9, s/a*1e9, 'ours, a quarter of the size'))
    return rows


def json(x): return '|'.join(['', *map(str, x), ''])


def build_once(folder, n):
    "Seconds, nonzeros and MB of one build; making the codes is not timed"
    ready = [*chunks(n)]
    write_codes(folder/'warm', [ready[0][:1000]], None, F) # compiles
    with Peak() as peak: made,seconds = timed(lambda: write_codes(folder/'codes', ready, lines(n), F, chunk_rows=CHUNK))
    return seconds, made.nnz, peak.mb


def transposed_rate(root):
    "The published transposed zarr of a smaller store, all latents"
    small = write_codes(root/'small', chunks(20_000), lines(20_000), F)
    _,seconds = timed(lambda: export_transposed(small, root/'small_zarr'))
    shutil.rmtree(root/'small_zarr')
    return small.nnz/seconds/1e6, 'transposed zarr (1, 10,000), 20,000 rows'


def delphi_rate(root):
    "EleutherAI's cache: dense codes in, splits of latents out"
    cache = delphi()
    if not cache: return float('nan'), 'delphi is not installed (pip install --no-deps eai-delphi)'
    held = cache.LatentCache(None, {}, 8)
    rows = 8192
    dense = torch.from_numpy(matrix(rows, 0).toarray()).view(-1, 8, 128, F)
    held.width = F
    def whole():
        for i,x in enumerate(dense): held.cache.add(x, torch.zeros(8, 128), i, 'site')
        held.cache.save()
        held.save_splits(5, root/'delphi', save_tokens=False)
    _,seconds = timed(whole)
    return int((dense!=0).sum())/seconds/1e6, f'delphi 0.1.3, add and save_splits, {rows:,} rows'


def delphi():
    "The module of delphi's cache, without the packages that the rest of it wants"
    spec = importlib.util.find_spec('delphi')
    if not spec: return None
    for name in ('delphi', 'delphi.config', 'delphi.latents', 'delphi.latents.collect_activations'):
        sys.modules.setdefault(name, ModuleType(name))
    import logging
    sys.modules['delphi'].logger = logging.getLogger('delphi')
    sys.modules['delphi.config'].CacheConfig = object
    sys.modules['delphi.latents.collect_activations'].collect_activations = None
    file = Path(spec.submodule_search_locations[0])/'latents'/'cache.py'
    spec = importlib.util.spec_from_file_location('delphi_cache', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Encode and build

def encode_rows(root):
    "Activations into a store, beside the encoder alone on the same rows"
    n = 65_536 if QUICK else 131_072
    g = torch.Generator().manual_seed(0)
    who = pd.DataFrame(dict(episode=np.arange(n)//256, step=np.arange(n)%256))
    parts = 16
    with Writer(root/'acts', dict(n=n), dict(train=list(range(n//256))), parts) as w:
        for i in range(parts):
            at = slice(i*n//parts, (i+1)*n//parts)
            w.add('decision', who[at].reset_index(drop=True), {'lm.0.out': torch.randn(n//parts, D, generator=g)})
            w.commit()
        acts = w.finish()
    sae = usable(new_sae(D, F, k=K).eval())
    encode,x = encoder(sae), acts.sample('lm.0.out', ['decision'], 4096)
    encode(x) # compiles
    def alone():
        from steerlens.acts.stream import Stream
        for x in Stream(acts, 'lm.0.out', 'decision', None, 1024, shuffle=False, epochs=1): encode(x)
    def whole(): return build(acts, sae, fresh(root/'encoded'), 'lm.0.out').nnz
    nnz = whole() # compiles
    ours,peer,mb = race(nnz, whole, alone)
    beyond = 1/max(1/ours-1/peer, 1e-9)/1e6
    named = f'encode and build, {nnz/1e6:.1f} M nonzeros'
    met = beyond>=5 and mb<=2000
    return [row(named, 'M nonzero/s', ours/1e6, peer/1e6, 'reading and encoding alone', mb),
            row('the same, beyond the encoder', 'M nonzero/s', beyond, 5., 'the bar', mb, '5 M/s, 2 GB', met)]


# Queries

@cache
def layouts(root):
    "The same codes in each layout, which hold some latents, the two that are asked for among them"
    codes,some = store(root), [100, 7000, *range(200, 200+SOME)]
    array = zarr_out(root/'transposed'/'transposed_activations.zarr', (F, N), (1, 10_000), 3)
    for f in some:
        rows,values = codes.load(f)
        x = np.zeros(N, 'f4')
        x[rows] = values
        array[f] = x
        at = root/'neurons'/f'neuron_{f:04d}'
        at.mkdir(parents=True)
        np.save(at/'acts.npy', values.astype('f4'))
        np.save(at/'idxs.npy', rows.astype('i8'))
    write_json(root/'neurons'/'neuron_metadata.json', dict(n_features=F, n_samples=N))
    return dict(transposed=Transposed(StorageConfig(transposed_dir=root/'transposed')))


def milliseconds(load, f):
    "Of `TIMES` loads and a sum over what came, which touches all of it"
    found = []
    for i in range(TIMES):
        start = time.perf_counter()
        rows,values = load(f)
        int(rows.sum()), float(values.sum(dtype='f4'))
        found.append((time.perf_counter()-start)*1e3)
    return np.sort(found)


def npy(root):
    def load(f):
        at = root/'neurons'/f'neuron_{f:04d}'
        return np.load(at/'idxs.npy'), np.load(at/'acts.npy')
    return load


def batch_scan(root):
    "The published base layout: the column of a latent in every chunk of every batch; a part of the rows is scanned"
    codes,n = store(root), 20_000
    array = zarr_out(root/'batches'/'batch_0000.zarr', (n, F), (1000, F), 3)
    for i in range(0, n, 1000):
        indptr,ids,values = codes.pieces[0].by_row
        a,b = indptr[i], indptr[i+1000]
        some = sparse.csr_matrix((values[a:b].astype('f4'), ids[a:b], indptr[i:i+1001]-a), (1000, F))
        array[i:i+1000] = some.toarray()
    _,seconds = timed(lambda: array[:,100])
    return seconds*N/n*1e3


def drop(root):
    "The store's pages out of memory; what is mapped somewhere stays"
    gc.collect()
    for name in ('rows', 'values'):
        with open(made(root)/'by_feature'/f'{name}.npy', 'rb') as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(root, f):
    "Median milliseconds of a latent whose pages are on disk alone, by ours, and by plain reads of the same bytes"
    ours,plain = [], []
    for _ in range(20):
        drop(root)
        codes = store(root)
        _,seconds = timed(lambda: [x.sum(dtype='f8') for x in codes.load(f)])
        ours.append(seconds*1e3)
        a,b = codes.pieces[0].by_feature.indptr[f:f+2].tolist()
        del codes
        drop(root)
        _,seconds = timed(lambda: [read(root, 'rows', 4*a, 4*b), read(root, 'values', 2*a, 2*b)])
        plain.append(seconds*1e3)
    return np.median(ours), np.median(plain)


def read(root, name, a, b):
    "Bytes `a` to `b` of an array"
    with open(made(root)/'by_feature'/f'{name}.npy', 'rb', buffering=0) as file:
        file.seek(128+a)
        return file.read(b-a)


def query_rows(root):
    peers = dict(layouts(root))
    rows,bars,found = [], {100: .3, 7000: 1.5}, {f: cold(root, f) for f in (100, 7000)}
    codes = store(root)
    for f in (100, 7000):
        n = len(codes.load(f)[0])
        ours = milliseconds(codes.load, f)
        others = {'transposed zarr': milliseconds(peers['transposed'].load, f)}
        others |= {'two npy files': milliseconds(npy(root), f)}
        for peer,ms in others.items():
            far = peer!='transposed zarr' or np.median(ours)*20<=np.median(ms)
            met = np.median(ours) <= bars[f] and far
            named,bar = f'all of a latent, {n:,} nonzeros, warm', f'{bars[f]} ms, 20 x the zarr'
            rows.append(row(f'{named}, p50', 'ms', np.median(ours), np.median(ms), peer, 0, bar, met))
            rows.append(row(f'{named}, p99', 'ms', np.quantile(ours, .99), np.quantile(ms, .99), peer))
        mine,plain = found[f]
        rows.append(row(f'all of a latent, {n:,} nonzeros, not in memory, p50', 'ms', mine, plain,
                        "plain reads of the same bytes", 0, '20 ms', mine<=20))
    rows.append(row('all of a latent, beside a scan of the batches', 'ms', np.median(milliseconds(codes.load, 100)),
                    batch_scan(root), 'batch zarr, 20,000 rows scanned and scaled to all'))
    return rows + sizes(codes, 'float16', 6) + sizes(wide(root), 'float32', 8)


def wide(root):
    "A quarter of the rows, float32"
    n = SIZES[0]
    return write_codes(root/'wide', chunks(n), lines(n), F, dtype='float32', chunk_rows=CHUNK)


def sizes(codes, dtype, bar):
    "Bytes of ids and values a nonzero, in both orders; the index has 8 bytes a latent or row besides"
    found = []
    for order in ('by_feature', 'by_row'):
        _,ids,values = getattr(codes.pieces[0], order)
        bytes_ = (ids.nbytes+values.nbytes)/codes.nnz
        found.append(row(f'{order}, {dtype}, ids and values', 'B/nonzero', bytes_, bar+4.,
                         'coordinates, uint32 twice', 0, f'{bar} B', bytes_<=bar))
    return found


# Statistics

def statistics_rows(root):
    "Counts, means, quantiles, histograms and top rows of all latents"
    codes = store(root)
    statistics(write_codes(root/'few', [matrix(1000, 0)], lines(1000), F)) # compiles
    with Peak() as peak: _,seconds = timed(lambda: statistics(codes, partners=0, columns=[]))
    _,more = timed(lambda: statistics(codes))
    indptr,ids,values = codes.pieces[0].by_feature
    def numpy():
        for f in range(0, F, 64):
            x = np.asarray(values[indptr[f]:indptr[f+1]], 'f4')
            if not len(x): continue
            x.mean(), x.std(), x.max(), np.quantile(x, [.05,.25,.5,.75,.95]), np.histogram(x, 50), np.argsort(-x)[:50]
    n = int(np.diff(indptr)[::64].sum())
    _,plain = timed(numpy)
    rate = codes.nnz/seconds/1e6
    peer = 'numpy, a latent at a time'
    plain = n/plain/1e6
    return [row('statistics of each latent', 'M nonzero/s', rate, plain, peer, peak.mb, '20 M/s', rate>=20),
            row('the same, with partners and a breakdown', 'M nonzero/s', codes.nnz/more/1e6, plain, peer, peak.mb)]


# Server

OURS = 'from steerlens.cli import main; main()'
GUIDE = '''# the published design: a dense line of the transposed zarr, its nonzeros as an Arrow file, ten latents kept
import socket, sys
import numpy as np, pyarrow as pa, uvicorn, zarr
from fastapi import FastAPI, Response
z,kept,app = zarr.open_array(sys.argv[2], mode='r'), {}, FastAPI()

@app.get('/activations/{f}/arrow')
def arrow(f:int):
    if f not in kept:
        x = z[f]
        kept[f] = np.flatnonzero(x), x[x!=0]
        if len(kept) > 10: kept.pop(next(iter(kept)), None)
    rows,values = kept[f]
    batch,sink = pa.RecordBatch.from_pydict(dict(row_id=rows, activation=values)), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as w: w.write(batch)
    return Response(sink.getvalue().to_pybytes())

s = socket.create_server(('127.0.0.1', 0))
print(f'http://127.0.0.1:{s.getsockname()[1]}', flush=True)
uvicorn.Server(uvicorn.Config(app, log_level='warning', access_log=False)).run([s])
'''


class Served:
    "A server in a process of its own"
    def __init__(self, code, *words):
        asked = [sys.executable, '-c', code, 'serve', *map(str, words), '--port', '0']
        self.process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=HERE)
        self.port = None
        for line in self.process.stdout:
            if found := re.search(r':(\d+)', line.split('http://')[-1] if 'http://' in line else ''):
                self.port = int(found[1])
                break

    def mb(self):
        with open(f'/proc/{self.process.pid}/status') as f:
            of = {l.split(':')[0]: int(l.split()[1]) for l in f if l.startswith('Rss')}
        return of['RssAnon']/1e3

    def __enter__(self): return self
    def __exit__(self, *_): self.process.terminate(), self.process.wait()


async def ask(port, paths, until, seen, seed):
    "One connection that asks as fast as it is answered"
    r,w = await asyncio.open_connection('127.0.0.1', port, limit=1<<22)
    pick = random.Random(seed)
    while (start := time.perf_counter()) < until:
        w.write(f'GET {pick.choice(paths)} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n'.encode())
        head = await r.readuntil(b'\r\n\r\n')
        await r.readexactly(int(re.search(rb'content-length: (\d+)', head.lower())[1]))
        seen.append(((time.perf_counter()-start)*1e3, head[9:12]==b'200'))
    w.close()


def pressed(port, paths, seconds):
    "Requests a second, p50 and p99 in ms, errors"
    async def all_of_them():
        seen,start = [], time.perf_counter()
        await asyncio.gather(*(ask(port, paths, start+seconds, seen, i) for i in range(8)))
        return seen, time.perf_counter()-start
    seen,took = asyncio.run(all_of_them())
    ms = np.sort([m for m,_ in seen])
    return len(ms)/took, np.median(ms), ms[int(.99*len(ms))], sum(not ok for _,ok in seen)


def server_rows(root):
    "Arrow, latents of about ten thousand, eight connections"
    codes = store(root)
    near = np.argsort(np.abs(np.diff(codes.pieces[0].by_feature.indptr)-10_000))[:SOME].tolist()
    array = zarr_out(root/'served'/'transposed_activations.zarr', (F, N), (1, 10_000), 3)
    for f in near:
        x = np.zeros(N, 'f4')
        rows,values = codes.load(f)
        x[rows] = values
        array[f] = x
    paths = [f'/activations/{f}/arrow' for f in near]
    found = {}
    zarr = root/'served'/'transposed_activations.zarr'
    for name,words in dict(ours=[OURS, codes.folder], zarr=[GUIDE, zarr]).items():
        with Served(*words) as s:
            pressed(s.port, paths, 2)
            before = s.mb()
            found[name] = *pressed(s.port, paths, SECONDS if name=='ours' else min(SECONDS, 15)), s.mb()-before
    (rate,p50,p99,errors,grown),(other,q50,q99,_,_) = found['ours'], found['zarr']
    peer = 'the published design, over the transposed zarr'
    met = rate>=400 and p99<=20 and not errors and grown<10
    named,bar = 'served, Arrow, latents of 10,000, 8 connections', '400/s, p99 20 ms, no error'
    return [row(named, 'requests/s', rate, other, peer, grown, bar, met),
            row(f'{named}, p50', 'ms', p50, q50, peer, grown),
            row(f'{named}, p99', 'ms', p99, q99, peer, grown, '20 ms', p99<=20)]


if __name__=='__main__':
    PARTS = dict(build=build_rows, encode=encode_rows, query=query_rows, statistics=statistics_rows, server=server_rows)
    ABOUT = (f'Synthetic codes, {N:,} rows of about {K} among {F:,} latents that fire as unevenly as words do. '
             'A load is summed up, so that all of it is touched. The published layouts: zarr, blosc with zstd at 3, '
             'one latent and 10,000 samples a chunk. A warm load is bound by memory, a cold one by the disk.')
    run(PARTS, ARGS, title='The code store', about=ABOUT, nonzeros=N*K, features=F)
