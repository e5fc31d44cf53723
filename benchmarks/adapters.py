"""Does it help to start from another model's autoencoder? Held-out rows by updates, beside starts that know nothing

    python benchmarks/adapters.py [--quick] [--json FILE] [--only expert,layer,model,kept]

It takes the activations and autoencoders that phases 1 and 2 left of nano_lm and nano_vla, in this project or in that
of STEERLENS_ROOT.
"""
import os
os.environ |= dict(TQDM_DISABLE='1')
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import islice
import pandas as pd
import torch
from steerlens.acts.store import Acts
from steerlens.acts.stream import Stream
from steerlens.core import need, read_json, root
from steerlens.sae.adapters import begin
from steerlens.sae.models import load_sae, new_sae, save_sae
from steerlens.sae.scores import quality
from steerlens.sae.sites import Recipe, held_out_rows
from steerlens.sae.train import Training, train
from table import args, run

ARGS = args(__doc__)
SEEDS = range(1 if ARGS.quick else 3)
STEPS,SOON,EVERY = (40, 20, 20) if ARGS.quick else (200, 100, 50)
BATCH,LR = 512, 2e-3 # Phase 2's learning rate, which suits a random start
VLA,LM,LAYER = 'sae/nano_vla/lm.2.out', 'sae/nano_lm/blocks.1.hook_resid_post', 'blocks.2.hook_resid_post'
# Where from, where to, adapters ('' for the release as it is), and those that are spoiled for the nulls
CASES = dict(expert=('half as wide, nano_vla lm.2 -> expert.4', VLA, 'nano_vla', 'expert.4.out',
                     ['pad', 'project', 'procrustes', 'least_squares'], ['procrustes', 'project']),
             layer=('next layer, nano_lm blocks.1 -> blocks.2', LM, 'nano_lm', LAYER,
                    ['', 'pad', 'project', 'procrustes', 'least_squares'], ['']),
             model=('another model, nano_lm blocks.1 -> nano_vla lm.1', LM, 'nano_vla', 'lm.1.out',
                    ['pad', 'project'], ['project']))
NULLS = 'rotated', 'shuffled'
CURVES = []


def row(name, ours, peer, peer_name, unit='share'):
    return dict(name=name, ours=float(ours), peer=float(peer), peer_name=peer_name, unit=unit, memory_mb=0.)


@cache
def acts(subject):
    "The activations of its last phase 1"
    file = root()/'reports'/'1_residuals'/subject/'metrics.json'
    need(file.exists(), file, 'missing', do='make run, or set STEERLENS_ROOT to where it was run')
    return Acts(root()/read_json(file)['acts'])


@cache
def held_out(subject, site): return held_out_rows(acts(subject), site, Recipe(1, batch=BATCH, held_rows=8192))


def fed(subject, site, seed):
    return Stream(acts(subject), site, seed=seed, batch=BATCH, normalise='expected_average_only_in')


def began(subject, site, init, seed, **how):
    "An autoencoder at its start, in the units of training"
    stream = fed(subject, site, seed)
    start = begin(init, acts(subject), site, seed=seed)
    sae = new_sae(stream.d_in, seed=seed, init=start, x_BD=torch.cat(list(islice(stream, 8))), **how)
    if init not in ('random', 'data'): sae.fold_activation_norm_scaling_factor(1/float(stream.scale))
    return sae


def learned(sae, subject, site, seed, coefficients={}, steps=STEPS, every=EVERY):
    "Scores of held-out rows by updates, from before the first"
    stream,(watch,_) = fed(subject, site, seed), held_out(subject, site)
    with redirect_stdout(StringIO()):
        first = quality(sae, watch*stream.scale)[0]
        how = Training(steps, lr=LR, measure=every, coefficients=coefficients, seed=seed)
        log = train(sae, stream, watch, None, how).log
    first = dict(step=0, explained_variance=first['explained_variance'], l0=first['l0'], silent_held_out=first['dead'])
    sae.fold_activation_norm_scaling_factor(float(stream.scale))
    return pd.concat([pd.DataFrame([first]), log[list(first)]], ignore_index=True).rename(
        columns=dict(silent_held_out='silent'))


def arm(case, start, *args, **kw):
    "One start, every seed: its curves"
    subject,site,init,how = args
    found = []
    for seed in SEEDS:
        sae = began(subject, site, init, seed, **how)
        found.append(learned(sae, subject, site, seed, **kw).assign(case=case, start=start, seed=seed))
    df = pd.concat(found, ignore_index=True)
    CURVES.extend(df.to_dict('records'))
    end = df[df.step==STEPS]
    print(case, start, *(f'{df[df.step==s].explained_variance.mean():.4f}' for s in (0, SOON, STEPS)),
          f'L0 {end.l0.mean():.1f} silent {end.silent.mean():.3f}', flush=True)
    return df


def at(df, step, what='explained_variance'): return df[df.step==step][what].mean()


def case_rows(name):
    "Each adapter beside the null and beside a random start"
    said,release,subject,site,adapters,of = CASES[name]
    shape = load_sae(root()/release).cfg
    fresh = dict(d_sae=shape.d_sae, k=shape.k)
    def path(*names): return ':'.join([*filter(None, names), release])
    inits = {n or 'as it is': (path(n), {}) for n in adapters}
    inits |= {f'{null} {n or "as it is"}': (path(null, n), {}) for null in NULLS for n in of}
    inits |= {n: (n, fresh) for n in ('data', 'random')}
    found = {n: arm(said, n, subject, site, *how) for n,how in inits.items()}
    nulls = [n for n in found if n.startswith(NULLS)]
    return [r for n in [*(a or 'as it is' for a in adapters), 'data'] for r in beside(said, n, found, nulls)]


def beside(said, n, found, nulls):
    "Rows of one start: beside the best null before and after, and beside a random one"
    ours,rows = found[n], []
    for step,others in ((0, []), (STEPS, ['random'])):
        null = max(nulls, key=lambda m: at(found[m], step))
        name = f'{said}, {n}: explained variance after {step} updates'
        rows += [row(name, at(ours, step), at(found[peer], step), peer) for peer in (null, *others)]
    end = at(ours, STEPS, 'silent'), at(found['random'], STEPS, 'silent')
    return rows + [row(f'{said}, {n}: silent latents after {STEPS} updates', *end, 'random', 'share of latents')]


# A release of ReLU and L1, and what it may become

L1 = 2. # As a sum over latents, in the units of training; gives an L0 near that of TopK's release
PLANNED = 3e-5 # The source plan's, on the mean activation


@cache
def relu_release(folder):
    "The folder of a standard autoencoder of nano_lm's blocks.1, and its L0 on held-out rows"
    subject,site = 'nano_lm', 'blocks.1.hook_resid_post'
    sae = began(subject, site, 'random', 0, d_sae=512, architecture='standard')
    log = learned(sae, subject, site, 0, dict(l1_sum=L1), 100 if ARGS.quick else 1500, 500)
    scores,density = quality(sae, held_out(subject, site)[1])
    print('release', scores['explained_variance'], scores['l0'], scores['dead'], flush=True)
    save_sae(sae, folder/'relu', site, density, log, {}, [acts(subject).folder/'catalog.json'], **scores)
    return folder/'relu', scores


def kept_rows(folder):
    "A ReLU release on the next layer: kept under several L1, or turned into TopK, beside a random TopK"
    release,scores = relu_release(folder)
    k,case = round(scores['l0']), f'a ReLU release (L0 {scores["l0"]:.0f}) on the next layer'
    at_site,topk = ('nano_lm', LAYER, str(release)), dict(architecture='topk', k=k)
    found = {f"kept, the release's own L1": arm(case, 'ReLU, own L1', *at_site, {}, coefficients=dict(l1_sum=L1))}
    found["kept, the plan's L1"] = arm(case, 'ReLU, plan L1', *at_site, {}, coefficients=dict(l1_mean=PLANNED))
    of_mean = dict(l1_mean=PLANNED*256) # where the squared error, too, is a mean
    found["kept, the plan's L1 beside a mean error"] = arm(case, 'ReLU, plan L1 x width', *at_site, {},
                                                           coefficients=of_mean)
    found[f'turned into TopK, k={k}'] = arm(case, 'TopK', *at_site, topk)
    fresh = arm(case, 'TopK, random', 'nano_lm', LAYER, 'random', topk | dict(d_sae=512))
    return [r for n,df in found.items() for r in kept_row(f'{case}, {n}', df, fresh, k)]


def kept_row(name, df, fresh, k):
    peer = f'a random TopK, k={k}'
    for step in (0, STEPS):
        yield row(f'{name}: explained variance after {step} updates', at(df, step), at(fresh, step), peer)
        yield row(f'{name}: L0 after {step} updates', at(df, step, 'l0'), at(fresh, step, 'l0'), peer, 'latents')
    yield row(f'{name}: silent after {STEPS} updates', at(df, STEPS, 'silent'), at(fresh, STEPS, 'silent'), peer,
              'share of latents')


PARTS = {name: lambda folder, name=name: case_rows(name) for name in CASES} | dict(kept=kept_rows)
ABOUT = f"""
Autoencoders of phase 2 as releases, started on another stream and trained for {STEPS} updates of {BATCH:,} rows at a
learning rate of {LR} (phase 2's), mean of {len(SEEDS)} seeds (order of the rows, rows that maps are fitted by, nulls,
random starts). Scores on held-out rows; 0 updates is before any training. Nulls are the start itself with its latents'
lengths and biases and without its directions: rotated as a whole, or shuffled among latents along the stream's
principal axes; the best one of them is shown.
"""

if __name__=='__main__':
    run(PARTS, ARGS, title="Starting from another model's autoencoder", about=' '.join(ABOUT.split()), curves=CURVES)
