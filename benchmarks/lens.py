"""The top tokens of all latents, in tiles of the vocabulary, beside the bare product and beside a whole table

    python benchmarks/lens.py [--quick] [--json FILE] [--only float32,screened,exact,dense]

Random matrices of Gemma's size stand for decoder and unembedding. A part of the 16,384 latents is measured, over the
whole vocabulary: the work is the same for each of them.
"""
import torch
from steerlens.lens.tables import latent_tokens
from steerlens.subjects.base import Subject
from table import args, race, run

ARGS = args(__doc__)
D,V,N = 2048, 32_768 if ARGS.quick else 257_152, 20
LATENTS,ALL = (256 if ARGS.quick else 1024), 16_384
CHUNK,TILE = 512, 16_384 # as `latent_tokens` has them
RATE,MEMORY = .7, 2000 # bars: share of the bare product's rate, MB beyond the two matrices


def made(n_tokens):
    "A subject whose lens is one matrix, and decoder rows"
    torch.manual_seed(0)
    head = torch.nn.Linear(D, n_tokens, bias=False)
    head.weight.data.normal_()
    return Subject(torch.nn.ModuleDict(dict(head=head)), head='head'), torch.randn(LATENTS, D)


def bare(subject, v, dtype):
    "The product in the same chunks, and nothing done with it"
    w,h = subject.model['head'].weight.data, v.to(dtype)
    for i in range(0, len(w), TILE):
        tile = w[i:i+TILE].to(dtype)
        for j in range(0, len(h), CHUNK): h[j:j+CHUNK]@tile.T


def against(subject, v, screen, name, *dtypes):
    "Ours beside the bare product in each type: rates and memory"
    def ours(): return latent_tokens(subject, v, N, CHUNK, TILE, screen)
    latent_tokens(subject, v[:2], N, screen=screen) # compiles
    peers = [lambda t=t: bare(subject, v, t) for t in dtypes]
    a,*rates,mb = race(len(v), ours, *peers, repeat=2)
    what = f'top and bottom {N}, {len(v):,} of {ALL:,} latents, d {D:,}, V {V:,}: {name}'
    return [dict(name=what, ours=a, peer=b, peer_name=f'bare product, {str(t)[6:]}', unit='latents/s', memory_mb=mb)
            for t,b in zip(dtypes, rates)]


def float32(folder):
    "As asked: rate beside the product, memory beside the whole table"
    row, = against(*made(V), False, 'float32', torch.float32)
    row |= dict(bar=RATE, met=bool(row['ours']/row['peer'] >= RATE))
    whole = ALL*V*4/1e6
    memory = dict(name='memory beyond the two matrices, float32', ours=row['memory_mb'], peer=whole, unit='MB',
                  peer_name='the whole table, by its size', memory_mb=row['memory_mb'], bar=MEMORY,
                  met=bool(row['memory_mb'] <= MEMORY))
    return [row, memory]


def screened(folder):
    "Screened in bfloat16: beside both products"
    return against(*made(V), True, 'screened in bfloat16', torch.float32, torch.bfloat16)


def exact(folder):
    "Is the answer the same? Beside a product in bfloat16 alone"
    subject,v = made(V)
    plain,quick = (latent_tokens(subject, v[:128], N, screen=s).top for s in (False, True))
    w = subject.model['head'].weight.data
    rough = torch.cat([v[:128].bfloat16()@t.bfloat16().T for t in w.split(TILE)], 1)
    rough = rough.float().topk(N).indices.numpy()
    return [dict(name=f'tokens at the same place as in float32, top {N} of 128 latents: screened in bfloat16',
                 ours=float((quick==plain).mean()), peer=float((rough==plain).mean()), peer_name='bfloat16 alone',
                 unit='share', memory_mb=0.)]


def dense(folder):
    "Where the whole table fits"
    n_tokens = min(V, 32_768)
    subject,v = made(n_tokens)
    w = subject.model['head'].weight.data
    rows = []
    for screen,name in ((False, 'float32'), (True, 'screened in bfloat16')):
        latent_tokens(subject, v[:2], N, screen=screen)
        def ours(): return latent_tokens(subject, v, N, CHUNK, TILE, screen)
        a,b,mb = race(len(v), ours, lambda: (v@w.T).topk(N), repeat=2)
        what = f'top and bottom {N}, {len(v):,} latents, d {D:,}, V {n_tokens:,}: {name}'
        rows.append(dict(name=what, ours=a, peer=b, peer_name='(W_dec @ W_U).topk, the top alone', unit='latents/s',
                         memory_mb=mb))
    return rows


if __name__=='__main__':
    ABOUT = ('Random matrices of the size of Gemma\'s stand for decoder and unembedding; a part of the latents is '
             'measured, over the whole vocabulary. *Screened* rules tokens out by a bfloat16 product with a bound on '
             'its error and computes the others again in float32, so its lists are those of float32.')
    PARTS = dict(float32=float32, screened=screened, exact=exact, dense=dense)
    run(PARTS, ARGS, title='Tokens of all latents', about=ABOUT)
