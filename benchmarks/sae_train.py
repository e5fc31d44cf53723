"""Updates of TopK and BatchTopK autoencoders: ours beside sae-lens, eai-sparsify and the bare encoder product

    python benchmarks/sae_train.py [--quick] [--json FILE] [--only steps,loss,memory,disk]
"""
import multiprocessing, os, time, warnings
from unittest.mock import patch
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1', WANDB_MODE='disabled')
from contextlib import redirect_stdout
from functools import cache, partial
from io import StringIO
from itertools import product
import numpy as np, pandas as pd
import torch
from steerlens.acts.store import Writer
from steerlens.acts.stream import Stream
from steerlens.sae.gpu import fast_step
from steerlens.sae.models import new_sae
from steerlens.sae.step import bf16_units
from steerlens.sae.synthetic import Superposition
from steerlens.sae.train import Rows, Training, train
from table import Peak, args, run

ARGS = args(__doc__)
QUICK = ARGS.quick
SHAPES = [(768, 24576, 32, 2048), (2048, 16384, 64, 1024), (128, 2048, 16, 4096)] # d_in, latents, k, batch
if QUICK: SHAPES = [(256, 8192, 32, 2048), (128, 2048, 16, 4096)]
GPU = [(768, 24576, 32, 8192)] if torch.cuda.is_available() else []
TURNS = 3 if QUICK else 6           # Timed updates of each, taking turns
LATE = 100 if QUICK else 2000       # Updates before the second look
DEAD = 20 if QUICK else 1000        # Updates without firing after which a latent is dead
EQUAL = 20 if QUICK else 300        # Updates after which losses are compared, with latents dead after a sixth as many
LR = 3e-4
HALF = bf16_units() # Without units for it nobody trains in bf16, and its arms would take minutes an update
PRECISIONS = ('bf16', 'float32') if HALF else ('float32',) # The first is what one would train in here
TYPES = dict(bf16=torch.bfloat16, float32=torch.float32)


def row(name, unit, ours, peer, peer_name, mb=0):
    return dict(name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, memory_mb=mb)


@cache
def data(d, F, k, B, n=16):
    "Batches of sums of k out of a quarter as many directions as there are latents, at a mean norm of the root of d"
    toy = Superposition(F//4, d, k)
    xs = [toy.rows(B, i) for i in range(n)]
    return [x*d**.5/x.norm(dim=1).mean() for x in xs]


# Contestants: a function that updates once, with or without the auxiliary loss of dead latents; `take` makes one start
# where ours is

class Ours:
    def __init__(self, d, F, k, encode, architecture='topk', device='cpu', dead=DEAD):
        self.sae = new_sae(d, F, k, architecture).to(device)
        self.step,self.silent,self.dead = fast_step(self.sae, encode=encode), torch.zeros(F, device=device), dead
    def __call__(self, x, aux=True):
        done = self.step.step(x, LR, self.silent>self.dead if aux else None)
        self.silent = torch.where(done.fired>0, 0., self.silent+1)
    def take(self, ours):
        self.sae.load_state_dict(ours.sae.state_dict(), strict=False)
        self.step.load_state_dict(ours.step.state_dict())
        self.silent = ours.silent.clone()
    def loss(self, x): return self.sae.decode(self.sae.encode(x))-x


class SaeLens:
    def __init__(self, d, F, k, architecture='topk', device='cpu', dead=DEAD, autocast=False):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
        self.sae = new_sae(d, F, k, architecture).to(device)
        how = dict(lr=LR, lr_end=LR, lr_scheduler_name='constant', device=device, autocast=autocast)
        self.trainer = SAETrainer(SAETrainerConfig(10**9, 1024, dead_feature_window=dead, **how), self.sae, iter([]))
    def __call__(self, x):
        self.trainer.step(x)
        self.trainer.n_training_steps += 1
    def take(self, ours):
        self.sae.load_state_dict(ours.sae.state_dict(), strict=False)
        self.trainer.n_forward_passes_since_fired = ours.silent.clone()
    loss = Ours.loss


class Sparsify:
    """Its trainer's update of one batch: unit decoder, forward, backward, Adam instead of its sign momentum

    In bfloat16, as its forward pass is on a GPU.
    """
    def __init__(self, d, F, k, device='cpu', dead=DEAD, bf16=True):
        with redirect_stdout(StringIO()):
            from sparsify import sparse_coder, utils
            from sparsify.config import SparseCoderConfig
        # Its kernel, where Triton is installed, is for GPUs
        sparse_coder.decoder_impl = utils.eager_decode if device=='cpu' else utils.decoder_impl
        self.sae = sparse_coder.SparseCoder(d, SparseCoderConfig(num_latents=F, k=k), device)
        self.opt = torch.optim.Adam(self.sae.parameters(), lr=LR)
        self.silent = torch.zeros(F, device=device)
        self.dead,self.bf16 = dead, bf16
    def __call__(self, x, aux=True):
        self.sae.set_decoder_norm_to_unit_norm()
        dead = self.silent>self.dead if aux else None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16): out = self.sae(x, dead_mask=dead)
        (out.fvu+out.auxk_loss/32).backward() # the weight that Gao et al. (2024) give it
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.opt.step()
        self.opt.zero_grad()
        self.silent += 1
        self.silent[out.latent_indices.flatten()] = 0
    @torch.no_grad()
    def take(self, ours):
        w,norm = ours.sae, ours.sae.W_dec.norm(dim=1)
        self.sae.encoder.weight.copy_(w.W_enc.T*norm[:,None])
        self.sae.encoder.bias.copy_(w.b_enc*norm)
        self.sae.W_dec.copy_(w.W_dec/norm[:,None])
        self.sae.b_dec.copy_(w.b_dec)
        self.silent = ours.silent.clone()
    def loss(self, x): return self.sae(x).sae_out-x


class Bare:
    "The encoder's product alone"
    def __init__(self, d, F, dtype, device='cpu'): self.W,self.dtype = torch.randn(F, d).to(device, dtype), dtype
    def __call__(self, x): x.to(self.dtype) @ self.W.t()


def alone(fn, *args, **env):
    "`fn(*args)` in a process of its own, with this environment"
    with patch.dict(os.environ, env), multiprocessing.get_context('spawn').Pool(1) as pool: return pool.apply(fn, args)


def wait():
    if torch.cuda.is_available(): torch.cuda.synchronize()


def turns(shape, who, device='cpu'):
    "Median seconds of an update of each, taking turns; it comes after others of its own for 30 ms, as in training"
    xs,seconds = [x.to(device) for x in data(*shape)], {n: [] for n in who}
    for i in range(TURNS+1):
        for n,f in who.items():
            begin = time.perf_counter()
            while time.perf_counter()-begin < .03: f(xs[i-1]); wait()
            t = time.perf_counter()
            f(xs[i%len(xs)])
            wait()
            if i: seconds[n].append(time.perf_counter()-t)
    return {n: float(np.median(s)) for n,s in seconds.items()}


def limit(shape, product, device):
    "Seconds of the product, and of Adam's memory (weights and two moments of two matrices) at the rate of a copy"
    d,F,*_ = shape
    a,b = torch.zeros(2, 6, F, d, device=device)
    times = []
    for _ in range(3):
        wait(); t = time.perf_counter(); b.copy_(a); wait(); times.append(time.perf_counter()-t)
    return product+min(times)


LENS = 'sae-lens SAETrainer.step'
PEERS = dict(lens=f'{LENS}, float32', lens16=f'{LENS}, bf16 autocast', lens_batch=f'{LENS}, float32',
             bare='bare encoder product in bf16', bare32='bare encoder product in float32',
             limit="limit: that product, and Adam's memory at the rate of a copy")
FP32,BF16 = ('lens', 'bare32'), ('lens', 'lens16', 'sparsify', 'bare', 'limit')


def half(on): return HALF or on=='cuda'


def matches(on):
    "{ours: (how, its peers)}"
    if not half(on): return dict(
        fp32=('float32', *FP32, 'sparsify', 'limit'), batch=('BatchTopK, float32', 'lens_batch'),
        plain=('float32, no aux loss', 'sparsify_plain', 'bare32'))
    return dict(
        fp32=('float32', *FP32), bf16=('bf16', *BF16), batch=('BatchTopK, bf16', 'lens_batch'),
        plain=('bf16, no aux loss', 'sparsify_plain', 'bare'))


def compare(shape, who, when, device):
    "A row for each of ours beside each of its peers that took part"
    d,F,k,B = shape
    s = turns(shape, who, device)
    if 'bare32' in who: s['limit'] = limit(shape, s.get('bare', s['bare32']), device)
    name = f"{on_gpu(device)}{d} -> {F:,}, k={k}, batch {B:,}, {when}"
    sparsify = f'eai-sparsify, {"bf16 autocast" if half(device) else "float32"}'
    called,rows = PEERS | dict(sparsify=sparsify, sparsify_plain=sparsify), []
    for w,(how,*peers) in matches(device).items():
        rows += [row(f'{name}, {how}', 'rows/s', B/s[w], B/s[p], called[p]) for p in peers if w in s and p in s]
    return rows


def on_gpu(device): return 'GPU, ' if device=='cuda' else ''


def contestants(d, F, k, on='cpu'):
    "Those of TopK, in both precisions where there are units for both"
    who = dict(fp32=Ours(d, F, k, torch.float32, device=on), lens=SaeLens(d, F, k, device=on))
    who['sparsify'] = Sparsify(d, F, k, on, bf16=half(on))
    if not half(on): return who
    return who | dict(bf16=Ours(d, F, k, torch.bfloat16, device=on), lens16=SaeLens(d, F, k, device=on, autocast=True))


def _steps(shape, on):
    "Rows at the start and late"
    warnings.simplefilter('ignore')
    d,F,k,B = shape
    xs = [x.to(on) for x in data(*shape)]
    who,encode = contestants(d, F, k, on), torch.bfloat16 if half(on) else torch.float32
    who |= dict(batch=Ours(d, F, k, encode, 'batchtopk', on), lens_batch=SaeLens(d, F, k, 'batchtopk', on))
    who['bare32'] = Bare(d, F, torch.float32, on)
    if half(on): who['bare'] = Bare(d, F, torch.bfloat16, on)
    rows = compare(shape, who, 'at the start', on)
    ours = Ours(d, F, k, encode, device=on) # timing updated the other one, who knows how often
    who['bf16' if half(on) else 'fp32'] = ours
    for i in range(LATE): ours(xs[i%len(xs)])
    for f in who.values():
        if hasattr(f, 'take'): f.take(ours)
    dead = int((ours.silent>DEAD).sum())
    recall = ours.step.recall(xs[0])
    who |= dict(plain=partial(ours, aux=False), sparsify_plain=partial(who['sparsify'], aux=False))
    rows += compare(shape, who, f'after {LATE:,} updates ({dead:,} dead)', on)
    if not half(on): return rows # float32 misses none
    chosen = f'latents chosen in bf16 among the true ones, after {LATE:,} updates'
    name = f'{on_gpu(on)}{d} -> {F:,}, k={k}: {chosen}'
    return rows + [row(name, 'share', recall, 1., 'the choice of dense float32')]


def _kept(shape):
    "Rows at the start, where malloc keeps what is freed"
    warnings.simplefilter('ignore')
    return compare(shape, contestants(*shape[:3]), 'at the start, freed memory kept', 'cpu')


def steps_rows(root):
    "Each shape in a process of its own, as one trains: what was done before decides what malloc keeps"
    rows,keeps = [], {f'MALLOC_{w}_THRESHOLD_': '4000000000' for w in ('TRIM','MMAP')}
    for shape in SHAPES: rows += alone(_steps, shape, 'cpu') + alone(_kept, shape, **keeps)
    for shape in GPU: rows += alone(_steps, shape, 'cuda')
    return rows


def loss_rows(root):
    "The same weights, batches, learning rate and number of updates"
    shape,rows,dead = SHAPES[-1], [], EQUAL//6
    d,F,k,B = shape
    xs,test = data(*shape), Superposition(F//4, d, k).rows(B, 999)
    test = test*d**.5/test.norm(dim=1).mean()
    for name in ('topk','batchtopk'):
        who = {n: Ours(d, F, k, TYPES[n], name, dead=dead) for n in PRECISIONS}
        who['sae-lens, float32'] = SaeLens(d, F, k, name, dead=dead)
        if name=='topk':
            peer = f'eai-sparsify, {PRECISIONS[0]}, its own normalisation of loss and weights'
            who[peer] = Sparsify(d, F, k, dead=dead, bf16=HALF)
        first,*others = who.values()
        for f in others: f.take(first)
        for f in who.values():
            for i in range(EQUAL): f(xs[i%len(xs)])
        with torch.no_grad(): loss = {n: float(f.loss(test).pow(2).sum(1).mean()) for n,f in who.items()}
        n = int((who['float32'].silent>dead).sum())
        after = f'{name} {d} -> {F:,}: loss on fresh rows after {EQUAL} equal updates ({n:,} dead)'
        for w,p in product(reversed(PRECISIONS), [*who][len(PRECISIONS):]):
            rows.append(row(f'{after}, {w}', 'squared error', loss[w], loss[p], p))
    return rows


def _peak(make, shape):
    "MB that three updates with a quarter of the latents dead take beyond what one of a tiny autoencoder left"
    warnings.simplefilter('ignore')
    torch.set_num_threads(2)
    with redirect_stdout(StringIO()): make(16, 64, 4)(torch.randn(8, 16)) # what is loaded is not what is taken
    d,F,k,_ = shape
    xs = data(*shape, n=1)
    with Peak() as peak:
        f,dead = make(d, F, k), (torch.arange(F)%4==0)*2.*DEAD
        if hasattr(f, 'trainer'): f.trainer.n_forward_passes_since_fired = dead
        else: f.silent = dead
        for _ in range(3): f(xs[0])
    return peak.mb


MAKERS = {'bf16': partial(Ours, encode=torch.bfloat16), 'float32': partial(Ours, encode=torch.float32),
          'sae-lens, float32': SaeLens, 'eai-sparsify, bf16': Sparsify,
          'eai-sparsify, float32': partial(Sparsify, bf16=False)}


def memory_rows(root):
    rows = []
    for shape in SHAPES[:1] if QUICK else SHAPES:
        d,F,k,B = shape
        mb = {n: alone(_peak, make, shape) for n,make in MAKERS.items() if HALF or 'bf16' not in n}
        for o in PRECISIONS:
            for p in ('sae-lens, float32', f'eai-sparsify, {o}'):
                rows.append(row(f'memory, {d} -> {F:,}, batch {B:,}, {o}', 'MB', mb[o], mb[p], p, mb[o]))
    return rows


def shards(x, n, d, folder):
    "Activations on disk: those rows again and again, up to `n`, in four shards"
    with Writer(folder, {}, dict(train=list(range(n//256)), validation=[]), 4) as w:
        for i in range(4):
            r = i*n//4+np.arange(n//4)
            w.add('all', pd.DataFrame(dict(episode=r//256, step=r%256, task='a')), {'l.out': x[r%len(x)]})
            w.commit()
        return w.finish()


def disk_rows(root):
    "The whole loop, fed from half a gigabyte of shards with a quarter of that as memory, and from a tensor"
    rows = []
    for d,F,k,B in (SHAPES[0], SHAPES[-1]):
        n,steps = 2**(24 if QUICK else 27)//d//1024*1024, (10 if QUICK else 40)*(1 if F==SHAPES[0][1] else 10)
        x = torch.cat(data(d, F, k, B))
        acts = shards(x, n, d, root/f'acts{d}')
        how = Training(steps=steps, lr=LR, measure=steps, checkpoint=steps)
        from_disk = dict(batch=B, memory_mb=n*d/2**20, normalise='expected_average_only_in')
        def loop(batches):
            with redirect_stdout(StringIO()):
                return train(new_sae(d, F, k), batches, x[:B], None, how).log.rows_per_s.iloc[-1]
        pairs = [(loop(Stream(acts, 'l.out', **from_disk)), loop(Rows(x, B))) for _ in range(3)]
        best = np.max(pairs, axis=0).tolist()
        name = f'training loop from disk, {d} -> {F:,}, batch {B:,}'
        rows.append(row(name, 'rows/s', *best, 'the same loop from a tensor in memory'))
    return rows


PARTS = dict(steps=steps_rows, loss=loss_rows, memory=memory_rows, disk=disk_rows)
ABOUT = f"""
Sums of k out of a quarter as many directions as there are latents, in superposition. One update: forward, backward,
clipping, Adam; of the peers what their own trainers do (eai-sparsify with Adam and bf16 autocast, on a CPU its own
has neither; its auxiliary loss reaches the decoder only). Median of {TURNS} updates, taking turns, each after others
of its own for 30 ms, as in training; each shape in a process of its own. Freed memory kept: the same where malloc
gives none of it back to the system (MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ of 4 GB; not the default),
which spares the peers the page faults of their large temporary tensors. Late rows: with the weights that {LATE:,} of
our TopK updates made, dead latents (silent for {DEAD} updates) in the auxiliary loss of ours and of both peers, or of
none, as eai-sparsify does by default. Memory is what three updates with a quarter of the latents dead took beyond
what was there after one of a tiny autoencoder, each in a process of its own.
{'' if HALF else 'This processor has no units for bf16: its arms are left out.'}
"""


def main():
    warnings.filterwarnings('ignore', module='sparsify|sae_lens')
    if not HALF: print('no units for bf16 here: its arms are left out', flush=True)
    run(PARTS, ARGS, title='Training autoencoders', about=' '.join(ABOUT.split()))


if __name__=='__main__': main()
