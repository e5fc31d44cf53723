"""How often an investigation finds something: in random directions, and in latents

    python benchmarks/investigate.py [--quick] [--json FILE] [--only nano_lm,nano_vla,set_model]

It asks the stores of phase 5 in this project's `codes/`, or in that of STEERLENS_ROOT.
"""
import os
os.environ |= dict(TQDM_DISABLE='1', OMP_NUM_THREADS='1')
import warnings
import numpy as np
from steerlens.commands.shared import store_named
from steerlens.core import rng
from steerlens.explore.bench import open_bench
from steerlens.explore.investigate import opened, suggested, tried
from steerlens.explore.units import random_directions
from table import args, run, timed

ARGS = args(__doc__)
SITES = dict(nano_lm='blocks.1.hook_resid_post', nano_vla='lm.1.out', set_model='hidden.out')
N,SEED = 3 if ARGS.quick else 30,1 # Seed 0 was looked at while the rule was chosen
BAR = .1 # Of random directions
warnings.simplefilter('ignore') # figures without a legend


def supported(bench, feature, folder):
    "Is any hypothesis supported; None where there is none"
    case = opened(bench, feature, folder, n_alike=0)
    made = suggested(case)[0]
    return any(line['verdict']=='supported' for line in tried(case, made)) if made else None


def rates(subject, folder):
    "The rows of one subject"
    bench = open_bench(store_named(f'{subject}/{SITES[subject]}'))
    alive = np.flatnonzero(bench.codes.counts >= np.median(bench.codes.counts))
    asked = {'random directions': random_directions(N, bench.rows.shape[1], f'investigated {SEED}'),
             'latents': rng('investigated', SEED).permutation(alive)[:N].tolist()}
    return [rate(f'{subject}, {SITES[subject]}: {who}', bench, cases, folder) for who,cases in asked.items()]


def rate(name, bench, cases, folder):
    "How many have a hypothesis that is supported"
    found,seconds = timed(lambda: [supported(bench, f, folder) for f in cases])
    n = sum(x is not None for x in found)
    share = sum(x is True for x in found)/len(found)
    print(name, share, n, f'{seconds:.0f} s', flush=True)
    bar = dict(bar=BAR, met=bool(share <= BAR)) if 'directions' in name else {}
    return dict(name=f'{name} ({n} of {len(found)} have a hypothesis; {seconds/len(found):.0f} s each)', ours=share,
                peer=BAR, peer_name='1 in 10', unit='share with one supported', memory_mb=0., **bar)


if __name__=='__main__':
    ABOUT = ('An investigation takes hypotheses from training rows and tries to refute them on held-out inputs. '
             'Random directions pick their own hypotheses, as latents do, and should come out with nothing.')
    run({s: lambda folder, s=s: rates(s, folder) for s in SITES}, ARGS, title='Investigations of nonsense', about=ABOUT)
