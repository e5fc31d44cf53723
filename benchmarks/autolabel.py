"""Labels by `template` where the truth is known, on held-out episodes: beside shuffled labels and the bar

    python benchmarks/autolabel.py [--quick] [--json FILE] [--only synthetic,set_model]
"""
import os
os.environ |= dict(TQDM_DISABLE='1', OMP_NUM_THREADS='1')
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
import numpy as np, pandas as pd
import torch
from scipy import sparse
from torch.nn.functional import normalize
from steerlens.codes.backends import CodeStore
from steerlens.codes.store import write_codes
from steerlens.core import generator
from steerlens.explore.autolabel import autolabel
from steerlens.sae.attributes import aucs
from steerlens.sae.models import for_use, new_sae
from steerlens.sae.synthetic import Superposition
from steerlens.sae.train import Rows, Training, train
from steerlens.subjects import set_data, set_model
from steerlens.subjects.base import alone, tap
from steerlens.subjects.set_tokens import family_of
from table import args, run

ARGS = args(__doc__)
QUICK = ARGS.quick
BAR,REACHED = .5, .8     # Half of the latents with a true concept reach .8
TOLD = .9                # AUC, or cosine, of a latent that has a concept


def fitted(x, latents, k, steps, **how):
    "An autoencoder of some rows"
    rows = Rows(x, 512)
    sae = new_sae(x.shape[1], latents, k, x_BD=x[:8192]*rows.scale, **how)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        done = train(sae, rows, x[:512], None, Training(steps=steps, lr=3e-3, measure=steps))
    sae.fold_activation_norm_scaling_factor(done.scale)
    return for_use(sae)


def stored(folder, z, who):
    "Codes as a store"
    write_codes(folder, sparse.csr_matrix(z.numpy()), who, z.shape[1])
    return CodeStore(folder)


def table(name, made, concept, same):
    "What is reported of a run; `concept` is latent -> truth, `same` compares a rule's values with it"
    t = made.table.set_index('feature').reindex(sorted(concept))
    right = [isinstance(r, dict) and same(sum(r.values(), []), concept[f]) for f,r in t.rule.items()]
    reach = (t.detection>=REACHED).mean()
    def row(what, ours, peer, peer_name, unit, **more):
        numbers = dict(ours=float(ours), peer=float(peer), memory_mb=0.)
        return dict(name=f'{name}: {what}', peer_name=peer_name, unit=unit) | numbers | more
    bar = dict(bar=BAR, met=bool(reach>=BAR))
    return [row(f'labels that reach {REACHED}', reach, BAR, 'the bar', f'of {len(t)} latents', **bar),
            row('detection, mean', t.detection.mean(), t.placebo.mean(), 'shuffled labels', 'balanced acc.'),
            row('called by its concept', np.mean(right), 1/len({*concept.values()}), 'a guess', 'share')]


def synthetic(folder):
    "Sums of known directions"
    n,F = (12_000, 64) if QUICK else (60_000, 512)
    toy,g = Superposition(features=F, d_in=F//2, active=4), generator('benchmark')
    pick = torch.rand(n, F, generator=g).topk(4).indices
    x = torch.zeros(n, F).scatter(1, pick, torch.rand(n, 4, generator=g)+.5) @ toy.true_FD
    cut = n*3//4
    sae = fitted(x[:cut], F*3//2, 4, 600 if QUICK else 2500)
    names = np.array([f'direction {i}' for i in range(F)])
    who = pd.DataFrame(dict(episode=np.arange(n)//20, directions=names[pick].tolist(), step=np.arange(n)%20,
                            split=np.where(np.arange(n)<cut, 'train', 'validation')))
    with torch.no_grad(): store = stored(folder/'synthetic/codes', sae.encode(x), who)
    made = autolabel(store)
    cosine = normalize(sae.W_dec.detach(), dim=1) @ toy.true_FD.T
    concept = {f: names[int(cosine[f].argmax())] for f in made.table.feature if cosine[f].max()>=TOLD}
    return table('synthetic', made, concept, lambda values, truth: truth in values)


def sets_of(table, vocabulary):
    "Activations of views, and who they are"
    parts,batches = [], set_model.SetBatches(table, vocabulary, 512)
    me = set_model.subject()
    with alone(me):
        for b in batches:
            with tap(me, 'masked_mean.out', stop=True) as acts: me.run(*b.args, **b.kwargs)
            parts.append(acts['masked_mean.out'][0][:,0])
    return torch.cat(parts)


def families(folder):
    "Functions of the standard library, from modules that neither the model nor the autoencoder has seen"
    sets = set_data.shipped()
    n_views = dict(train=4, test=1)
    views = {s: set_model.view_table(sets.only(s), n, 0).sort_values('size') for s,n in n_views.items()}
    x = {s: sets_of(t, sets.vocabulary) for s,t in views.items()}
    sae = fitted(x['train'], 512, 24, 300 if QUICK else 1500, architecture='batchtopk')
    who = pd.concat([t.assign(split=s) for s,t in views.items()], ignore_index=True)
    who = who.assign(episode=pd.factorize(who.module+'.'+who.function)[0])
    with torch.no_grad(): z = sae.encode(torch.cat([*x.values()]))
    store = stored(folder/'families/codes', z, who[['episode', 'step', 'size', 'context', 'tokens', 'split']])
    made = autolabel(store)
    has = sets.vocabulary.matrix(who.tokens).numpy()
    concept = told(z.numpy(), has, (who.split=='train').to_numpy(), sets.vocabulary.tokens)
    concept = {f: c for f,c in concept.items() if f in {*made.table.feature}}
    return table('set_model', made, concept, lambda values, truth: truth in map(family_of, values))


def told(z, has, train, names):
    "Latent -> family of the token that it tells best among training rows, if it does among held-out ones, too"
    enough = np.minimum(has[train].sum(0), has[~train].sum(0)) >= 25
    learn,judge = (np.nan_to_num(aucs(z[side], has[side])) for side in (train, ~train))
    best = np.where(enough[:,None], learn, 0).argmax(0)
    sure = [f for f in range(z.shape[1]) if min(learn[best[f],f], judge[best[f],f]) >= TOLD]
    return {f: family_of(names[best[f]]) for f in sure}


if __name__=='__main__':
    ABOUT = ('The labeller is `template`, which asks no model. *Detection* is balanced accuracy on held-out windows of '
             'all tenths and as many silent ones; shuffled labels are those of other latents on the same windows. '
             'Of the synthetic autoencoder, those latents are judged that point along a known direction; of '
             '`set_model`, those that tell a family of tokens on held-out functions.')
    parts = dict(synthetic=synthetic, set_model=families)
    run(parts, ARGS, title='Automatic labels against known concepts', about=ABOUT)
