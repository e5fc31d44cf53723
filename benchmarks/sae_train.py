"""Updates of TopK and BatchTopK autoencoders: ours beside sae-lens, eai-sparsify and the bare encoder product, in one run

    python benchmarks/sae_train.py [--quick] [--json FILE] [--only steps,batchtopk,loss,memory,disk]
"""
import multiprocessing, os, time, warnings
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1', WANDB_MODE='disabled')
from contextlib import redirect_stdout
from functools import cache, partial
from io import StringIO
import numpy as np, pandas as pd
import torch
from steerlens.acts.store import Writer
from steerlens.acts.stream import Stream
from steerlens.sae.gpu import fast_step
from steerlens.sae.models import new_sae
from steerlens.sae.scores import Superposition
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
EQUAL = 20 if QUICK else 300        # Updates after which losses are compared
LR = 3e-4


def row(name, unit, ours, peer, peer_name, mb=0): return dict(name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, memory_mb=mb)


@cache
def data(d, F, k, B, n=16):
    "Batches of sums of k out of a quarter as many directions as there are latents, at a mean norm of the root of d"
    toy = Superposition(F//4, d, k)
    xs = [toy.rows(B, i) for i in range(n)]
    return [x*d**.5/x.norm(dim=1).mean() for x in xs]


# Contestants: a function that updates once

class Ours:
    def __init__(self, d, F, k, encode, architecture='topk', device='cpu'):
        self.sae = new_sae(d, F, k, architecture).to(device)
        self.step,self.silent = fast_step(self.sae, encode=encode), torch.zeros(F, device=device)
    def __call__(self, x):
        done = self.step.step(x, LR, self.silent>DEAD)
        self.silent = torch.where(done.fired>0, 0., self.silent+1)
        return done.mse


class SaeLens:
    def __init__(self, d, F, k, architecture='topk', device='cpu'):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
        self.sae = new_sae(d, F, k, architecture).to(device)
        self.trainer = SAETrainer(SAETrainerConfig(10**9, 1024, lr=LR, lr_end=LR, lr_scheduler_name='constant', dead_feature_window=DEAD, device=device), self.sae, iter([]))
    def __call__(self, x):
        out = self.trainer.step(x)
        self.trainer.n_training_steps += 1
        return out.losses['mse_loss'].item()


class Sparsify:
    "Its trainer's update of one batch: unit decoder, forward, backward, Adam, in bfloat16 as its forward pass is on a GPU"
    def __init__(self, d, F, k, device='cpu'):
        with redirect_stdout(StringIO()):
            from sparsify import sparse_coder, utils
            from sparsify.config import SparseCoderConfig
        sparse_coder.decoder_impl = utils.eager_decode if device=='cpu' else utils.decoder_impl # its kernel, where Triton is installed, is for GPUs
        self.sae = sparse_coder.SparseCoder(d, SparseCoderConfig(num_latents=F, k=k), device)
        self.opt = torch.optim.Adam(self.sae.parameters(), lr=LR)
    def __call__(self, x):
        self.sae.set_decoder_norm_to_unit_norm()
        with torch.autocast(x.device.type, torch.bfloat16): out = self.sae(x)
        out.fvu.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.opt.step()
        self.opt.zero_grad()
        return float(out.fvu.detach())


class Bare:
    "The encoder's product alone"
    def __init__(self, d, F, dtype, device='cpu'): self.W,self.dtype = torch.randn(F, d).to(device, dtype), dtype
    def __call__(self, x): x.to(self.dtype) @ self.W.t()


def wait():
    if torch.cuda.is_available(): torch.cuda.synchronize()


def turns(shape, who, device='cpu'):
    "Median seconds of an update of each, taking turns"
    xs,seconds = [x.to(device) for x in data(*shape)], {n: [] for n in who}
    for i in range(TURNS+1):
        for n,f in who.items():
            wait()
            t = time.perf_counter()
            f(xs[i%len(xs)])
            wait()
            if i: seconds[n].append(time.perf_counter()-t)
    return {n: float(np.median(s)) for n,s in seconds.items()}


def limit(shape, product, device):
    "Seconds of the product and of Adam's reads and writes (weights and two moments of two matrices) at the rate at which memory is copied"
    d,F,*_ = shape
    a,b = torch.zeros(2, 6, F, d, device=device)
    times = []
    for _ in range(3):
        wait(); t = time.perf_counter(); b.copy_(a); wait(); times.append(time.perf_counter()-t)
    return product+min(times)


def compare(shape, who, when, device):
    d,F,k,B = shape
    s,name = turns(shape, who, device), f"{'GPU, '*(device=='cuda')}{d} -> {F:,}, k={k}, batch {B:,}, {when}"
    rate = lambda n: B/s[n]
    return [row(f'{name}, float32', 'rows/s', rate('fp32'), rate('sae-lens'), 'sae-lens SAETrainer.step, float32'),
            row(f'{name}, bf16', 'rows/s', rate('bf16'), rate('sae-lens'), 'sae-lens SAETrainer.step, float32'),
            row(f'{name}, bf16', 'rows/s', rate('bf16'), rate('sparsify'), 'eai-sparsify, bf16 autocast'),
            row(f'{name}, bf16', 'rows/s', rate('bf16'), rate('bare'), 'bare encoder product in bf16'),
            row(f'{name}, bf16', 'rows/s', rate('bf16'), B/limit(shape, s['bare'], device), "limit: that product, and Adam's memory at the rate of a copy")]


def alike(who):
    "The peers take over the weights, and what is dead, of ours"
    from_,silent = who['bf16'].sae, who['bf16'].silent
    who['fp32'].sae.load_state_dict(from_.state_dict())
    who['fp32'].step.load_state_dict(who['bf16'].step.state_dict())
    who['fp32'].silent = silent.clone()
    who['sae-lens'].sae.load_state_dict(from_.state_dict())
    who['sae-lens'].trainer.n_forward_passes_since_fired = silent.clone()
    with torch.no_grad():
        p = who['sparsify'].sae
        p.encoder.weight.copy_(from_.W_enc.T*from_.W_dec.norm(dim=1)[:,None]), p.encoder.bias.copy_(from_.b_enc*from_.W_dec.norm(dim=1)), p.W_dec.copy_(from_.W_dec), p.b_dec.copy_(from_.b_dec)


def steps_rows(root):
    rows = []
    for shape,on in [*((s, 'cpu') for s in SHAPES), *((s, 'cuda') for s in GPU)]:
        d,F,k,B = shape
        who = {'bf16': Ours(d, F, k, torch.bfloat16, device=on), 'fp32': Ours(d, F, k, torch.float32, device=on), 'sae-lens': SaeLens(d, F, k, device=on), 'sparsify': Sparsify(d, F, k, on), 'bare': Bare(d, F, torch.bfloat16, on)}
        rows += compare(shape, who, 'at the start', on)
        xs = [x.to(on) for x in data(*shape)]
        for i in range(LATE): who['bf16'](xs[i%len(xs)])
        alike(who)
        recall = who['bf16'].step.recall(xs[0])
        rows += compare(shape, who, f'after {LATE:,} updates ({int((who["bf16"].silent>DEAD).sum()):,} dead)', on)
        rows.append(row(f"{'GPU, '*(on=='cuda')}{d} -> {F:,}, k={k}: latents chosen in bf16 among the true ones, after {LATE:,} updates", 'share', recall, 1., 'the choice of dense float32'))
        del who
    return rows


def batchtopk_rows(root):
    rows = []
    for shape in SHAPES:
        d,F,k,B = shape
        who = {'bf16': Ours(d, F, k, torch.bfloat16, 'batchtopk'), 'sae-lens': SaeLens(d, F, k, 'batchtopk')}
        s = turns(shape, who)
        rows.append(row(f'BatchTopK {d} -> {F:,}, k={k}, batch {B:,}, bf16', 'rows/s', B/s['bf16'], B/s['sae-lens'], 'sae-lens SAETrainer.step, float32'))
    return rows


def loss_rows(root):
    "The same weights, batches, learning rate and number of updates"
    shape,rows = SHAPES[-1], []
    d,F,k,B = shape
    xs,test = data(*shape), Superposition(F//4, d, k).rows(B, 999)
    test = test*d**.5/test.norm(dim=1).mean()
    for name in ('topk','batchtopk'):
        who = {'bf16': Ours(d, F, k, torch.bfloat16, name), 'float32': Ours(d, F, k, torch.float32, name), 'sae-lens': SaeLens(d, F, k, name)}
        for n,f in who.items():
            for i in range(EQUAL): f(xs[i%len(xs)])
        with torch.no_grad(): loss = {n: float((f.sae.decode(f.sae.encode(test))-test).pow(2).sum(1).mean()) for n,f in who.items()}
        rows += [row(f'{name} {d} -> {F:,}: loss on fresh rows after {EQUAL} equal updates, {n}', 'squared error', loss[n], loss['sae-lens'], 'sae-lens, float32') for n in ('float32','bf16')]
    return rows


def _peak(make, shape):
    "MB that three updates take beyond what was there, in a process of its own"
    warnings.simplefilter('ignore')
    torch.set_num_threads(2)
    with redirect_stdout(StringIO()): import sae_lens, sparsify.sparse_coder # what a peer imports is not what it takes
    xs = data(*shape, n=1)
    with Peak() as peak:
        f = make()
        for _ in range(3): f(xs[0])
    return peak.mb


def memory_rows(root):
    rows = []
    for shape in SHAPES[:1 if QUICK else 2]:
        d,F,k,B = shape
        who = dict(ours=partial(Ours, d, F, k, torch.bfloat16), fp32=partial(Ours, d, F, k, torch.float32), lens=partial(SaeLens, d, F, k), sparsify=partial(Sparsify, d, F, k))
        mb = {}
        for n,make in who.items():
            with multiprocessing.get_context('spawn').Pool(1) as pool: mb[n] = pool.apply(_peak, (make, shape))
        rows += [row(f'memory, {d} -> {F:,}, batch {B:,}, {o}', 'MB', mb[w], mb[p], who_, mb[w]) for o,w in (('bf16','ours'),('float32','fp32')) for p,who_ in (('lens','sae-lens'),('sparsify','eai-sparsify'))]
    return rows


def disk_rows(root):
    "The whole loop, fed from shards of four times the memory it may use, and from a tensor"
    d,F,k,B = SHAPES[0]
    n,steps = 32*B, 10 if QUICK else 40
    x = torch.cat(data(*SHAPES[0]))
    with Writer(root/'acts', {}, dict(train=list(range(n//256)), validation=[]), 4) as w:
        for i in range(4):
            at = i*n//4+np.arange(n//4)
            w.add('all', pd.DataFrame(dict(episode=at//256, step=at%256, task='a')), {'l.out': x[at%len(x)]})
            w.commit()
        acts = w.finish()
    how = Training(steps=steps, lr=LR, measure=steps, checkpoint=steps)
    def loop(batches):
        with redirect_stdout(StringIO()): return train(new_sae(d, F, k), batches, x[:B], None, how).log.rows_per_s.iloc[-1]
    best = [0., 0.]
    for _ in range(2):
        best = [max(best[0], loop(Stream(acts, 'l.out', batch=B, memory_mb=n*d/2**20, normalise='expected_average_only_in'))), max(best[1], loop(Rows(x, B)))]
    return [row(f'training loop from disk, {d} -> {F:,}, batch {B:,}', 'rows/s', *best, 'the same loop from a tensor in memory')]


PARTS = dict(steps=steps_rows, batchtopk=batchtopk_rows, loss=loss_rows, memory=memory_rows, disk=disk_rows)

def main():
    warnings.filterwarnings('ignore', module='sparsify|sae_lens')
    run(PARTS, ARGS, title='Training autoencoders', about=f'Sums of k out of a quarter as many directions as there are latents, in superposition. One update: forward, backward, clipping, Adam; of the peers what their own trainers do. Median of {TURNS} updates, taking turns. '
           f'Late rows: with the weights that {LATE:,} of our updates made, dead latents (silent for {DEAD} updates) in the auxiliary loss of ours and of sae-lens; eai-sparsify has none by default. Memory is what three updates took beyond what was there, each in a process of its own.')


if __name__=='__main__': main()
