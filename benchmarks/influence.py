"""Which latents matter? Ranks by attribution, held against exact patching on held-out inputs, beside a naive peer

    python benchmarks/influence.py [--quick] [--json FILE] [--only nano_lm,nano_vla,set_model]

It asks the stores of phase 5 in this project's `codes/`, or in that of STEERLENS_ROOT.
"""
import os
os.environ |= dict(TQDM_DISABLE='1', OMP_NUM_THREADS='1')
from steerlens.commands.shared import store_named
from steerlens.explore.bench import open_bench
from steerlens.explore.experiments import experiment_named
from steerlens.explore.patching import attributed
from table import args, run, timed

ARGS = args(__doc__)
SITES = dict(nano_lm='blocks.1.hook_resid_post', nano_vla='lm.1.out', set_model='hidden.out')
LATENTS,INPUTS = (20, 16) if ARGS.quick else (60, 64)
BAR = dict(nano_lm=.8) # Spearman


def ranks(subject):
    "The rows of one subject: agreement, then seconds"
    bench = open_bench(store_named(f'{subject}/{SITES[subject]}'))
    e = experiment_named('influence_ranks')
    of,some = bench.units(int(bench.codes.counts.argmax()), LATENTS-1, e.placebo), bench.some(INPUTS)
    attributed(bench, of, some) # first use loads and compiles
    quick = timed(lambda: attributed(bench, of, some))[1]
    (_,f),both = timed(lambda: e.run(bench, of, n=INPUTS))
    name = f"{subject}, {SITES[subject]}, {f['what'].split(',')[0]}"
    sure = f"{f['rho_lo']:.2f} to {f['rho_hi']:.2f}; {f['n']} held-out inputs of {f['groups']} groups"
    bar = dict(bar=BAR[subject], met=bool(f['rho'] >= BAR[subject])) if subject in BAR else {}
    agree = dict(name=f'{name}: agrees with exact patching ({sure})', ours=f['rho'], peer=f['writes'],
                 peer_name='how much a latent writes', unit=f'Spearman, {LATENTS} latents', memory_mb=0., **bar)
    return [agree, dict(name=f'{name}: time for {LATENTS} latents', ours=quick, peer=both-quick,
                        peer_name='exact patching', unit='s', memory_mb=0.)]


if __name__=='__main__':
    ABOUT = ('Latents that fire, drawn at random, are switched off one at a time on held-out inputs; *exact* is the '
             'mean size of what this changes, *attribution* the same by gradient times activation. The peer ranks '
             'latents by the mean length of what they write, which takes no output into account. Intervals resample '
             'latents.')
    run({s: lambda folder, s=s: ranks(s) for s in SITES}, ARGS, title='Influence by attribution', about=ABOUT)
