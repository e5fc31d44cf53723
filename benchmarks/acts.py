"""Datasets of activations, harvested, written, read and mixed: ours beside sae-lens, bare numpy and the bare model

    python benchmarks/acts.py [--quick] [--json FILE] [--only harvest,write,read,cold,mixing,tokens]
"""
import multiprocessing, os, resource, shutil, time, warnings
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
from contextlib import closing, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
import numpy as np, pandas as pd
import torch
from steerlens.acts.harvest import harvest
from steerlens.acts.store import Acts, Writer
from steerlens.acts.stream import Stream, shuffle_quality
from steerlens.subjects.hf import as_subject
from steerlens.subjects.lm import batches
from steerlens.subjects.text import documents, load_tokenizer, tokenize
from table import Peak, args, race, run

ARGS = args(__doc__)
QUICK = ARGS.quick
D = 768                            # Width, float32, one site
SHARDS,ADD = 4 if QUICK else 12, 8192 # Shards, and rows written at once
SHARD = ADD*(4 if QUICK else 8)    # Rows in a shard
N = SHARDS*SHARD                   # Rows
EPISODE = 256                      # Rows in an episode
B = 4096                           # Rows in a training batch
READ = 400_000 if QUICK else 1_500_000 # Rows read, warm; ten epochs where all fits
SMALL = 128 if QUICK else 256      # MB, where the data is larger than the memory
BATCHES = 6 if QUICK else 20       # Batches of 8 x 128 tokens harvested on a CPU, 20 times as many on a GPU
TEXT = 2_000_000 if QUICK else 8_000_000 # Characters tokenized
HEAD = 256                         # MB a process may have beside that: batches on their way, threads
SITE = 'blocks.6.hook_resid_pre'
T,W = 128, 8                       # Context, and windows in a batch


def fresh(path):
    shutil.rmtree(path, ignore_errors=True)
    return path


def row(name, unit, ours, peer, peer_name, mb):
    return dict(name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, memory_mb=mb)


# Tokens

@cache
def text(root):
    "The standard library's own sources, and a tokenizer made from some of them"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    src,n = root/'text', 0
    src.mkdir()
    library = Path(os.__file__).parent
    for f in sorted(library.glob('*.py')) + sorted(library.glob('*/*.py')):
        t = f.read_text(errors='ignore') if 'site-packages' not in f.parts else ''
        if not t or n > TEXT: continue
        (src/f'{len(t)}_{f.parent.name}_{f.name}').write_text(t)
        n += len(t)
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer,tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    docs = [t for *_,t in documents(src)]
    end,letters = '<|endoftext|>', pre_tokenizers.ByteLevel.alphabet()
    how = dict(vocab_size=8000, special_tokens=[end], initial_alphabet=letters, show_progress=False)
    tok.train_from_iterator(docs[::8], trainers.BpeTrainer(**how))
    PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=end, bos_token=end).save_pretrained(root/'tokenizer')
    return src, root/'tokenizer', docs


def tokenized(root):
    with redirect_stdout(None):
        return tokenize(*text(root)[:2], fresh(root/'tokens'), 'the standard library', 'PSF-2.0')


def tokens_rows(root):
    src,tok,docs = text(root)
    back = None
    def anew():
        nonlocal back
        back = load_tokenizer(tok).backend_tokenizer # its cache of words empty again
    n = tokenized(root).n_tokens
    def bare(): back.encode_batch_fast(docs, add_special_tokens=False)
    ours,peer,mb = race(n, lambda: tokenized(root), bare, before=anew)
    name = f'tokenize {n/1e6:.1f}M tokens of {len(docs)} documents'
    return [row(name, 'tokens/s', ours, peer, 'tokenizers encode_batch_fast alone, text in memory', mb)]


# Harvest

def hooked(model):
    "The same weights as TransformerLens has them"
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    p = next(model.parameters())
    sizes = dict(n_layers=12, d_model=D, d_head=64, n_heads=12, d_mlp=4*D, n_ctx=1024, d_vocab=50257)
    how = dict(act_fn='gelu_new', normalization_type='LN', eps=1e-5, device=str(p.device), dtype=p.dtype)
    cfg = HookedTransformerConfig(**sizes, **how)
    with warnings.catch_warnings(action='ignore', category=DeprecationWarning): # what sae-lens runs on
        tl = HookedTransformer(cfg)
    tl.load_state_dict(convert_gpt2_weights(model, cfg), strict=False)
    return tl.eval()


def runner(folder, n, shard, model=None, ids=None, device='cpu', feed=None):
    "sae-lens's cache_activations_runner, with a model and tokens (or ready vectors) that are here already"
    import sae_lens.cache_activations_runner as car
    from datasets import Dataset
    few = 'The training dataset contains fewer samples' # vectors are fed, or a few windows harvested once
    warnings.filterwarnings('ignore', few, module='sae_lens')
    warnings.filterwarnings('ignore', 'To copy construct from a tensor', module='sae_lens') # its own way with tokens
    ids = [[0]*T] if ids is None else ids
    how = dict(context_size=T, device=device, buffer_size_gb=shard*D*4/1e9, streaming=False)
    cfg = car.CacheActivationsRunnerConfig('tokens', 'gpt2', W if model else 64, SITE, D, n,
                                           new_cached_activations_path=str(fresh(folder)), **how)
    with patch.object(car, 'load_model', lambda **_: model):
        r = car.CacheActivationsRunner(cfg, Dataset.from_dict(dict(input_ids=ids)))
    if feed: r.activations_store = SimpleNamespace(get_raw_llm_batch=feed)
    return r


def harvest_rows(root):
    from transformers import GPT2Config, GPT2LMHeadModel
    runs = [('cpu', 'float32')] + [('cuda', d) for d in ('float32','bfloat16') if torch.cuda.is_available()]
    tokens,tok,rows = tokenized(root), text(root)[1], []
    for device,dtype in runs:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config()).to(device, getattr(torch, dtype)).eval()
        subject,bs = as_subject(model), batches(tokens, tok, T)
        full = bs.windows[bs.windows.n==T-1]
        bs.windows = full.iloc[:W*(BATCHES if device=='cpu' else min(20*BATCHES, len(full)//W))]
        ids = [bs.ids(i)[0] for i in range(len(bs))]
        n,tl = sum(x.numel() for x in ids), hooked(model)
        split = dict(train=bs.rows(0).episode.unique().tolist())
        def ours(site):
            with redirect_stderr(StringIO()):
                harvest(subject, bs, [site], fresh(root/'harvest'), {}, split, dtype=dtype)
        @torch.no_grad()
        def bare():
            for x in ids: model.transformer(x.to(device), use_cache=False)
            if device=='cuda': torch.cuda.synchronize()
        def theirs(): runner(root/'harvest_sae', n, n, tl, torch.cat(ids).tolist(), device).run()
        bare()
        last,alone,mb = race(n, lambda: ours('blocks.11.hook_resid_post'), bare)
        mid,sae,mb_mid = race(n, lambda: ours(SITE), theirs)
        on = f'{"GPU" if device=="cuda" else "CPU"} {dtype}'
        forward = 'bare forward through the 12 layers, nothing kept'
        runs_too = 'sae-lens CacheActivationsRunner, same weights, also stops at the layer, stores float32'
        rows += [row(f'harvest, last layer, {on}', 'tokens/s', last, alone, forward, mb),
                 row(f'harvest, layer 6, {on}', 'tokens/s', mid, sae, runs_too, mb_mid)]
        del model, subject, tl
    return rows


# Write

def synced(path):
    with open(path, 'rb+') as f: os.fsync(f.fileno())


@cache
def vectors(): return [torch.randn(ADD, D, generator=torch.Generator().manual_seed(i)) for i in range(4)]


@cache
def tables():
    "The row table that a harvest makes, piece by piece"
    i,words = np.arange(N), np.array([f' word{j}' for j in range(5000)], dtype=object)
    episode = i//EPISODE
    task = np.array(['py','txt','md'], dtype=object)[episode%3]
    document = pd.Series(episode).map('lib/document_{}.py'.format)
    token = pd.Series(words[i*7919%5000], dtype='str')
    df = pd.DataFrame(dict(episode=episode, step=i//T%(EPISODE//T), task=task, document=document, denoise=np.int16(-1),
                           position=(i%T).astype('i4'), token=token, token_type='all'))
    return [df.iloc[k:k+ADD].reset_index(drop=True) for k in range(0, N, ADD)]


def write_ours(root):
    held = np.arange(0, N//EPISODE, 10).tolist()
    train = sorted({*range(N//EPISODE)} - {*held})
    with Writer(fresh(root/'ours'), {}, dict(train=train, validation=held), SHARDS) as w:
        for k,t in enumerate(tables(), 1):
            w.add('all', t, {SITE: vectors()[k%4]})
            if k*ADD%SHARD==0: w.commit()
        w.finish()


def write_memmap(root):
    m = np.memmap(root/'memmap', 'f4', 'w+', shape=(N, D))
    for k in range(0, N, ADD): m[k:k+ADD] = vectors()[k//ADD%4].numpy()
    m.flush()
    synced(root/'memmap')


def write_sae(root, shards=SHARDS):
    feed = lambda: (vectors()[0], torch.arange(ADD))
    runner(root/'sae', shards*SHARD, SHARD, feed=feed).run()
    for f in (root/'sae').iterdir(): synced(f)
    return shards*SHARD


def write_rows(root):
    vectors(), tables()
    def clean():
        (root/'memmap').unlink(missing_ok=True)
        for f in ('ours','sae'): fresh(root/f)
        os.sync()
    peers = lambda: write_memmap(root) or N, lambda: write_sae(root, 2)
    ours,memmap,sae,mb = race(None, lambda: write_ours(root) or N, *peers, before=clean)
    clean()
    with Peak() as peak: write_sae(root, 2)
    name,shard = f'write {N:,} rows', SHARD*D*4/1e6
    theirs = 'sae-lens CacheActivationsRunner.run, same vectors, fsync, rate over 2 shards'
    return [row(name, 'rows/s', ours, memmap, 'numpy.memmap, flush, fsync', mb),
            row(name, 'rows/s', ours, sae, theirs, mb),
            row('memory of writing, against a shard', 'MB', mb, shard, f'one shard of {SHARD:,} rows', mb),
            row('memory of writing', 'MB', mb, peak.mb, 'sae-lens, over 2 such shards', mb)]


# Read

def made(root, peers=False):
    "The written data, here also where writing was left out"
    makers = dict(ours=write_ours) | (dict(memmap=write_memmap, sae=write_sae) if peers else {})
    for name,make in makers.items():
        if not (root/name).exists() or name=='sae' and len(list((root/name).glob('data-*')))<SHARDS: make(root)
    return Acts(root/'ours')


def count(batches, n=READ):
    "Take batches until there are `n` rows; how many there were"
    got = 0
    for x in batches:
        got += len(x)
        if got >= n: break
    return got


def sae_store(root, rows):
    "sae-lens's reader of cached activations, with a mixing buffer of that many rows; its defaults otherwise"
    from sae_lens.training.activations_store import ActivationsStore
    device = torch.device('cpu')
    return ActivationsStore(None, None, False, SITE, None, T, D, rows//T, N, 32, B, False, 'none', device, 'float32',
                            cached_activations_path=str(root/'sae'))


def read_rows(root):
    acts = made(root, peers=True)
    def stream(n=READ, **kw): return count(Stream(acts, SITE, batch=B, **kw), n)
    m,g = np.memmap(root/'memmap', 'f4', 'r', shape=(N, D)), np.random.default_rng(0)
    def gather():
        while True:
            p = g.permutation(N)
            for k in range(0, N-B+1, B): yield m[p[k:k+B]]
    def copies():
        while True:
            for k in range(0, N, B): yield np.array(m[k:k+B])
    fits = N*(D*4+4)/2**20*1.01
    held = int(SMALL*2**20/(D*4))
    count(copies()), count(Stream(acts, SITE, batch=B, shuffle=False, epochs=1)) # all in the page cache
    whole = race(None, lambda: stream(9*N, memory_mb=fits), lambda: count(gather(), 9*N)) # nine tenths are for training
    def later(peer, **kw):
        it = iter(Stream(acts, SITE, batch=B, **kw))
        count(it, N) # the first epoch, in which memory is new and every number is looked at
        with closing(it): return race(None, lambda: count(it), lambda: count(peer()))
    def first(peer, **kw):
        return race(None, lambda: count(Stream(acts, SITE, batch=B, epochs=1, **kw), N), lambda: count(peer(), N))
    def theirs(rows): return count(sae_store(root, rows), READ//10)
    again,sae,same,mb = race(None, lambda: stream(memory_mb=SMALL), lambda: theirs(2*B), lambda: theirs(held))
    windows,order = dict(memory_mb=SMALL), dict(shuffle=False)
    name = f'read shuffled, {SMALL} MB for {N*D*4/2**20:,.0f} MB'
    random_rows,copied = 'numpy.memmap, random rows', 'numpy.memmap, batches copied in order'
    fastest = f'sae-lens cached activations, buffer of {2*B:,} rows (its fastest), rate over a tenth of the rows'
    as_many = ('sae-lens cached activations, buffer of as many MB as ours, as its default of 20 batches of 32 x 128 '
               'rows has, rate over a tenth of the rows')
    rows = [('read shuffled, all fits, 10 epochs', whole, random_rows),
            (f'{name}, first epoch (numbers checked)', first(gather, **windows), random_rows),
            (f'{name}, later epochs', later(gather, **windows), random_rows),
            (name, (again, sae, mb), fastest),
            (name, (again, same, mb), as_many),
            ('read in order, first epoch (numbers checked)', first(copies, **order), copied),
            ('read in order, later epochs', later(copies, **order), copied)]
    return [row(what, 'rows/s', ours, peer, of, mb) for what,(ours,peer,mb),of in rows]


# Larger than memory, from the disk

def dropped(files):
    for f in files:
        fd = os.open(f, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def cold(folder):
    "In a process that may not have more than `SMALL` + `HEAD` MB of data beyond what it began with"
    acts = Acts(folder)
    files = [f.path for f in acts.files(SITE)]
    read = np.empty(2**22, 'u1')
    def plain():
        for f in files:
            with open(f, 'rb', buffering=0) as h:
                while h.readinto(read): pass
    def stream(**kw): count(Stream(acts, SITE, batch=B, split=None, epochs=1, drop_last=False, **kw), N)
    torch.ones(B, D)@torch.ones(D, D) # the threads that will be there
    data = next(int(l.split()[1])*1024 for l in open('/proc/self/status') if l.startswith('VmData'))
    resource.setrlimit(resource.RLIMIT_DATA, (data+(SMALL+HEAD)*2**20,)*2)
    mb,drop = N*D*4/1e6, lambda: dropped(files)
    shuffled = race(mb, lambda: stream(memory_mb=SMALL), plain, before=drop)
    return shuffled, race(mb, lambda: stream(shuffle=False), plain, before=drop)


def cold_rows(root):
    made(root)
    with multiprocessing.get_context('spawn').Pool(1) as pool: found = pool.apply(cold, (root/'ours',))
    size,read = f'{SMALL} MB for {N*D*4/2**20:,.0f} MB', 'readinto of the same files in order, page cache dropped'
    named = zip(('shuffled','in order'), found)
    return [row(f'from disk {how}, {size}', 'MB/s', ours, peer, read, mb) for how,(ours,peer,mb) in named]


# How well batches are mixed

def entropy(ids):
    p = np.unique(ids, return_counts=True)[1]/len(ids)
    return -(p*np.log2(p)).sum()


def mixing_rows(root):
    from sae_lens.training.mixing_buffer import mixing_buffer
    acts = made(root)
    stream = Stream(acts, SITE, batch=B, memory_mb=SMALL)
    rows = acts.rows('all', ['episode'])
    q = shuffle_quality(stream, len(rows)//B)
    worst = q.loc[q.ratio.idxmin()]
    with Peak() as peak: count(stream, stream.n_rows)
    ids = torch.from_numpy(rows.episode.to_numpy()[acts.split(rows, 'train')])
    def sae(held):
        torch.manual_seed(0)
        return float(np.mean([entropy(x[:,0].numpy()) for x in mixing_buffer(held, B, iter(ids[:,None].split(32*T)))]))
    name,mb = f'bits of episode in a batch, {SMALL} MB', peak.mb
    mean,as_many = q.entropy.mean(), int(SMALL*2**20/(D*4))
    return [row(name, 'bits', mean, q.uniform.mean(), 'uniform batches', mb),
            row(f'{name}, worst of {len(q)}', 'bits', worst.entropy, worst.uniform, 'uniform batch', mb),
            row(name, 'bits', mean, sae(as_many), 'sae-lens mixing_buffer of as many MB, half kept', mb),
            row(name, 'bits', mean, sae(2*B), f'sae-lens mixing_buffer of {2*B:,} rows, half kept', mb)]


PARTS = dict(harvest=harvest_rows, write=write_rows, read=read_rows, cold=cold_rows, mixing=mixing_rows,
             tokens=tokens_rows)
ABOUT = f"""
N = {N:,} rows in E = {N//EPISODE:,} episodes of {EPISODE}, d = {D} float32, one site, {SHARDS} shards of {SHARD:,} rows
written {ADD:,} at a time, batches of {B:,} rows read. Harvest: GPT-2 small in shape, random weights, {BATCHES} batches
of {W} x {T} tokens on the CPU. Best of 3, taking turns. Memory is what ours took beyond what was there.
"""


def main(): run(PARTS, ARGS, title='Datasets of activations', about=' '.join(ABOUT.split()))


if __name__=='__main__': main()
