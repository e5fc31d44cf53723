"""A linear head beside a dense product and the memory's limit; supervised training and PPO beside the bare model

    python benchmarks/decoders.py [--quick] [--json FILE] [--only head,supervised,ppo]

The limit is the bytes that have to be moved (rows of active latents read once, logits written and their gradient read
once, the gradient of the whole table written once) at the rate of a large copy. Latents are drawn
evenly, which leaves the least to be read twice.

PPO is beside the frozen model's own generation: the same prompts already read, the same tokens sampled, the same keys
and values kept, and nothing else done. TRL has no PPO from 1.13 on.
"""
import os
import torch
from steerlens.core import generator, root as project
from steerlens.decoders.heads import Sparse, bag, new_head
from steerlens.decoders.ppo import Frozen, Settings, Text, Tuning
from steerlens.decoders.supervised import Reader, Supervision, supervise, text_of
from steerlens.sae.models import for_use, new_sae
from steerlens.subjects import nano_lm
from steerlens.subjects.base import alone
from table import Peak, args, race, run, timed

ARGS = args(__doc__)
QUICK = ARGS.quick
K,F,V = 32, 4096 if QUICK else 16_384, 16_384 if QUICK else 49_152
B,B_DENSE = 128, 16 if QUICK else 32
SITE,WINDOWS = 'blocks.1.hook_resid_post', 48 if QUICK else 240


def row(name, unit, ours, peer, peer_name, mb=0):
    return dict(name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, memory_mb=mb)


def best(f, repeat=3): return min(timed(f)[1] for _ in range(repeat))


# The head

def drawn():
    "Codes of `B` tokens"
    g = generator('benchmark codes')
    return Sparse(torch.rand(B, F, generator=g).topk(K).indices, torch.rand(B, K, generator=g)+.1)


def by_bag(codes, W, gradient):
    "Forward and backward by entries"
    W.grad = None
    bag(codes, codes.values, W).backward(gradient)


def by_product(codes, W, gradient):
    "The same by a dense product, of the first tokens"
    W.grad = None
    z = torch.zeros(B_DENSE, F).scatter_(1, codes.ids[:B_DENSE], codes.values[:B_DENSE])
    (z@W).backward(gradient[:B_DENSE])


def moved(n):
    "Bytes a second that a copy of `n` numbers reads and writes"
    a,b = torch.zeros(n), torch.ones(n)
    return 8*n/best(lambda: a.copy_(b))


def head(folder):
    codes,W = drawn(), torch.zeros(F, V).uniform_(-1, 1).requires_grad_()
    gradient = torch.randn(B, V, generator=generator('benchmark gradient'))
    with Peak() as peak: seconds = best(lambda: by_bag(codes, W, gradient))
    dense = best(lambda: by_product(codes, W, gradient), 1)*B/B_DENSE
    n_bytes = 4*V*(len(codes.ids.unique()) + 2*B + F)
    W.grad = None
    limit = n_bytes/moved(2**27)
    of = f'{K} of {F:,} latents, {V:,} tokens'
    return [row(f'head, forward and backward: {of}', 'tokens/s', B/seconds, B/dense, 'dense product', peak.mb),
            row(f'the same beside its limit: {n_bytes/1e9:.1f} GB moved', 'tokens/s', B/seconds, B/limit, 'memory')]


# Supervised training

def text(folder):
    tokens = nano_lm.tokens(folder/'text', 'train')
    return text_of(tokens, {}, project()/nano_lm.WEIGHTS, 256, WINDOWS, n_choice=8)


def made_sae():
    "An autoencoder of the size that nano_lm's have"
    sae = new_sae(256, 2048, K)
    sae.cfg.metadata.hook_name = SITE
    return for_use(sae)


def supervised(folder):
    windows,subject = text(folder), nano_lm.subject()
    reader,rows = Reader(subject, made_sae()), []
    x = reader(*windows.train.ids(0)).x[:,1:]
    n = int(windows.train.windows.n.sum())
    def bare():
        with alone(subject):
            for i in range(len(windows.train)): subject.run(windows.train.ids(i)[0])
    for name in ('table', 'lowrank', 'path'):
        model = n/timed(bare)[1] # now, since a shared machine's rate changes
        start = new_head(name, reader.sae, subject, x)
        with Peak() as peak: done = supervise(start, reader, windows, None, Supervision(epochs=1))
        rate = done.log.tokens_per_s.iloc[-1]
        rows.append(row(f'supervised training, {name}: nano_lm', 'tokens/s', rate, model, 'bare model', peak.mb))
    return rows


# PPO

@torch.no_grad()
def generated(env, which):
    "What the frozen model writes by itself"
    cache,mask,z = env.cache_of(which), env.mask[which], env.logp[which]
    for t in range(env.horizon):
        token = torch.multinomial(z.softmax(-1), 1)
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        if t+1 < env.horizon: z = env.subject.run(token, attention_mask=mask, cache=cache).logits[:,-1]


def ppo(folder):
    subject,can = nano_lm.subject(), nano_lm.verifiable(folder/'text')
    windows,prompts = text(folder), can.prompts('train', 40)
    x = Reader(subject, sae := made_sae())(*windows.train.ids(0)).x[:,1:]
    env = Frozen(subject, sae, can, prompts[prompts.task.isin([t.name for t in can.tasks if t.trained])])
    tuning = Tuning(env, new_head('table', sae, subject, x), Text(env, windows.train[:6]), Settings())
    every,which = generator('benchmark ppo'), torch.randperm(len(env.prompts), generator=generator('prompts'))[:60]
    with alone(subject):
        def rollout(): env.rollout(tuning.acting, which, every)
        def updated(): tuning.update(every)
        bare,drawn,whole,mb = race(len(which)*env.horizon, *(lambda: generated(env, which), rollout, updated))
    return [row('PPO, episodes alone: nano_lm', 'tokens/s', drawn, bare, 'bare generation'),
            row('PPO, episodes and learning: nano_lm', 'tokens/s', whole, bare, 'bare generation', mb)
            | dict(bar='half of bare generation', met=bool(whole >= bare/2))]


ABOUT = ('The linear head reads 32 codes a token by `embedding_bag`, beside a dense product of all codes with the '
         'table; its limit is the time that the bytes which must move take. Training and PPO on nano_lm stand beside '
         'the frozen model alone, which both of them run.')
run(dict(head=head, supervised=supervised, ppo=ppo), ARGS, title='Decoders over latents', about=ABOUT,
    load=round(os.getloadavg()[0], 1))
