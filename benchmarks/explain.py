"""Explanations from codes alone and from effects that were kept, and latents switched off, beside the plain ways

    python benchmarks/explain.py [--quick] [--json FILE] [--only codes,kept,exact]

The peer of an explanation is made one example at a time: a row's codes as a table, the lens and its gradient for this
row alone, and a sentence written line by line. The peer of switching latents off runs the model once for each.
"""
import os
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
from functools import cache
import numpy as np, pandas as pd
import torch
from scipy import sparse
from steerlens.codes.store import write_codes
from steerlens.core import root as project
from steerlens.explain.carried import by_lens, carried, without
from steerlens.explain.ranked import Names, explain
from steerlens.explore.bench import Bench, edited
from steerlens.explore.labels import about
from steerlens.sae.models import new_sae
from steerlens.subjects import nano_lm
from steerlens.subjects.base import tap
from steerlens.subjects.inputs import Inputs
from steerlens.subjects.lm import batches
from steerlens.subjects.text import load_tokenizer
from steerlens.subjects.windows import Windows, text_inputs
from table import args, race, run

ARGS = args(__doc__)
QUICK = ARGS.quick
SITE,CONTEXT,LATENTS,K = 'blocks.1.hook_resid_post', 128, 2048, 32
WINDOWS,N,N_PEER = (16, 256, 64) if QUICK else (64, 2048, 256)


@cache
def opened(root):
    "The embedded language model, codes of some windows by an autoencoder that starts from the data, and labels"
    t,subject = nano_lm.tokens(root/'text', 'validation'), nano_lm.subject()
    b = batches(t, project()/nano_lm.WEIGHTS, CONTEXT, WINDOWS, 16)
    with tap(subject, [SITE], stop=True) as acts:
        for i in range(len(b)): subject.run(b[i].args[0])
    x = torch.cat([a.flatten(0, 1) for a in acts[SITE]])
    sae = new_sae(x.shape[1], LATENTS, K, init='data', x_BD=x)
    with torch.no_grad(): z = sae.encode(x).numpy()
    codes = write_codes(root/'codes'/'main', sparse.csr_matrix(z), None, LATENTS, site=SITE, sae=dict(sha256='bench'))
    ids = [b.ids(i)[0] for i in range(len(b))]
    lines = pd.DataFrame(dict(ids=torch.cat(ids).tolist())).assign(step=0, task='text').reset_index(names='episode')
    tok = load_tokenizer(project()/nano_lm.WEIGHTS)
    held = text_inputs(Windows(lines.assign(group=lines.episode), b.words, tok.encode))
    bench = Bench(codes, subject, sae, lambda split: held, nano_lm.work())
    some = {f: (f'a label of {f}', .5+f%50/100) for f in range(0, LATENTS, 2)}
    return bench, Names(about(codes), some)


def row(name, unit, ours, peer, peer_name, mb, bar=None):
    found = dict(name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, memory_mb=mb)
    return found | (dict(bar=f'{bar:g}/s', met=bool(ours >= bar)) if bar else {})


def plainly(bench, names, r):
    "One explanation, the plain way"
    f,values = bench.codes.row(r)
    z = torch.zeros(LATENTS)
    z[f.astype('i8')] = torch.from_numpy(values.astype('f4'))
    z.requires_grad_()
    logits = bench.subject.read(bench.sae.decode(z[None]))[0]
    two = logits.topk(2).indices
    (logits[two[0]]-logits[two[1]]).backward()
    return worded(names, f, values, (z*z.grad).detach().numpy()[f], *(bench.held.outputs[i] for i in two.tolist()))


def worded(names, f, values, effects, said, instead):
    "A sentence from a table, line by line"
    t = pd.DataFrame(dict(latent=f, activation=values, effect=effects))
    t['label'] = t.latent.map(lambda i: names.labels.get(i, ('no label', None))[0])
    t = t.reindex(t.effect.abs().sort_values(ascending=False).index)
    top = pd.concat([t[t.effect > 0].head(5), t[t.effect < 0].head(3)])
    lines = [f'latent {r.latent} {r.label} ({r.activation:.3g}, {r.effect:.3g})' for _,r in top.iterrows()]
    return f'{said} rather than {instead}: ' + '; '.join(lines)


def codes(root):
    "From the codes of a row on: what they say through the lens, effects, and words"
    bench,names = opened(root)
    rows = np.random.default_rng(0).integers(0, bench.codes.n_rows, N)
    def ours():
        for a in range(0, N, 256):
            for p in by_lens(bench, rows[a:a+256]): explain(p, names)
        return N
    def plain():
        for r in rows[:N_PEER]: plainly(bench, names, int(r))
        return N_PEER
    return [row('explanations from codes', 'a second', *fit(race(None, ours, plain)), bar=500)]


def kept(root):
    "From effects that were kept"
    bench,names = opened(root)
    found = by_lens(bench, np.arange(256))
    def ours():
        for p in found: explain(p, names)
        return len(found)
    def plain():
        for p in found[:N_PEER]: worded(names, p.latents, p.activations, p.effects, p.said, p.instead)
        return N_PEER
    return [row('explanations from kept effects', 'a second', *fit(race(None, ours, plain)), bar=500)]


def fit(found):
    "Rates and memory as `row` takes them"
    own,peer,mb = found
    return own, peer, 'one example at a time', mb


def exact(root):
    "Effects of single latents on one prediction, measured"
    bench,_ = opened(root)
    line = bench.held.table.iloc[0].to_dict()
    p, = carried(bench, bench.held.table.iloc[:1])
    some = p.latents[np.argsort(-np.abs(p.effects))][:16 if QUICK else 64].tolist()
    of = bench.units(some[0], 0)
    b, = bench.held.batches(bench.held.table.iloc[:1])
    def ours():
        without(bench, line, [(), *((f,) for f in some)])
        return len(some)
    def plain():
        for f in some:
            of.latents = (f,)
            bench.work.margin(b, edited(bench, b, lambda x, ctx: of.moved(x, 0)))
        return len(some)
    own,peer,mb = race(None, ours, plain)
    return [row('latents switched off', 'a second', own, peer, 'a run for each', mb)]


ABOUT = ' '.join(__doc__.split('\n\n')[-1].split())

if __name__=='__main__': run(dict(codes=codes, kept=kept, exact=exact), ARGS, title='Explanations', about=ABOUT)
