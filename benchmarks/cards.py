"""Cards of latents, from a store and from tokens on, beside SAEDashboard; statistics and enrichment of 24,576 latents

    python benchmarks/cards.py [--quick] [--json FILE] [--only cards,all]

SAEDashboard asks for older packages than we do, so it runs in a Python of its own, which SAE_DASHBOARD=/path/to/python
names. Without it, the peer is a card made the plain way, for which the row table is read and searched anew.
"""
import json, os, subprocess
from functools import cache
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
import numpy as np, pandas as pd
import torch
from scipy import sparse
from steerlens.acts.harvest import harvest
from steerlens.acts.store import split_episodes
from steerlens.codes.backends import CodeStore
from steerlens.codes.build import build
from steerlens.codes.queries import head_of
from steerlens.codes.statistics import statistics
from steerlens.codes.store import write_codes
from steerlens.core import root as project
from steerlens.explore.card import cards
from steerlens.explore.enrich import enrich
from steerlens.explore.facts import Deck
from steerlens.sae.models import load_sae, new_sae, save_sae
from steerlens.subjects import nano_lm
from steerlens.subjects.lm import batches
from table import Peak, args, run, timed

ARGS = args(__doc__)
QUICK = ARGS.quick
SITE,CONTEXT,WINDOWS = 'blocks.1.hook_resid_post', 256, 96 if QUICK else 480
LATENTS,K,N_CARDS,N_PEER = 2048, 32, 256 if QUICK else 1024, 32 if QUICK else 256
F,ROWS,VOCABULARY = 24_576, 125_000 if QUICK else 1_000_000, 4096
SAE_DASHBOARD = os.environ.get('SAE_DASHBOARD')


def row(name, unit, ours, peer, peer_name, mb=0, bar=None, met=None):
    found = dict(name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, memory_mb=mb)
    return found | (dict(bar=bar, met=bool(met)) if bar else {})


# Cards of a language model's latents

@cache
def text(root):
    "Windows of the standard library, and how they are split"
    t = nano_lm.tokens(root/'text', 'train')
    b = batches(t, project()/nano_lm.WEIGHTS, CONTEXT, WINDOWS, 16)
    episodes = b.windows.episode.unique().tolist()
    return b, split_episodes({e: e for e in episodes}, .2)


@cache
def autoencoder(root):
    "One that starts from the data, as a sae-lens folder"
    b,_ = text(root)
    subject = nano_lm.subject()
    from steerlens.subjects.base import tap
    with tap(subject, [SITE], stop=True) as acts: subject.run(b[0].args[0])
    sae = new_sae(256, LATENTS, K, init='data', x_BD=acts[SITE][0].flatten(0, 1))
    save_sae(sae, root/'sae', SITE, torch.zeros(LATENTS), pd.DataFrame(dict(step=[0])), {})
    return root/'sae'


def from_tokens(root, name):
    "Activations, codes, statistics, enrichment: what cards are made from"
    b,splits = text(root)
    subject,sae = nano_lm.subject(), load_sae(autoencoder(root), SITE)
    acts = harvest(subject, b, [SITE], root/name/'acts', dict(subject='nano_lm'), splits)
    codes = build(acts, sae, root/name/'codes', SITE)
    statistics(codes, sae, head_of(subject, sae), b.words.tolist())
    store = CodeStore(codes.folder)
    enrich(store, ['token', 'task', 'position'])
    return Deck(store, sae, nano_lm.showing())


def written(deck, n, folder):
    "So many cards, as files"
    for c in cards(deck, range(n), link=lambda i: f'{i}.html'): c.save(folder/f'{c.data["id"]}.html')


PEER = '''# SAEDashboard with its own defaults: the same model, autoencoder and tokens, all features on one page
import json, resource, sys, time, warnings
warnings.simplefilter('ignore')
import torch
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
model,sae,tokens,site,n,out = sys.argv[1:]
torch.set_num_threads(2)
gpt = GPT2LMHeadModel.from_pretrained(model, dtype=torch.float32)
c = gpt.config
cfg = HookedTransformerConfig(n_layers=c.n_layer, d_model=c.n_embd, d_head=c.n_embd//c.n_head, n_heads=c.n_head,
    d_mlp=4*c.n_embd, n_ctx=c.n_positions, d_vocab=c.vocab_size, act_fn='gelu_new', normalization_type='LN',
    eps=c.layer_norm_epsilon, device='cpu')
tl = HookedTransformer(cfg)
tl.load_state_dict(convert_gpt2_weights(gpt, cfg), strict=False)
tl.eval().tokenizer = PreTrainedTokenizerFast(tokenizer_file=f'{model}/tokenizer.json')
start = time.perf_counter()
how = SaeVisConfig(hook_point=site, features=list(range(int(n))), device='cpu')
save_feature_centric_vis(SaeVisRunner(how).run(SAE.load_from_disk(sae), tl, torch.load(tokens)), out)
mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3
print(json.dumps(dict(seconds=time.perf_counter()-start, mb=mb)))
'''


def dashboard(root):
    "SAEDashboard's cards a minute, and what it is"
    b,_ = text(root)
    torch.save(torch.cat([b[i].args[0] for i in range(len(b))]), root/'tokens.pt')
    asked = project()/nano_lm.WEIGHTS, autoencoder(root), root/'tokens.pt', SITE, N_PEER, root/'peer.html'
    made = subprocess.run([SAE_DASHBOARD, '-c', PEER, *map(str, asked)], text=True, capture_output=True)
    if made.returncode: raise SystemExit(f'SAEDashboard: {made.stderr}')
    found = json.loads(made.stdout.splitlines()[-1])
    return N_PEER/found['seconds']*60, f'SAEDashboard, {N_PEER} features, {found["mb"]:,.0f} MB in all, from tokens on'


def plainly(deck):
    "Cards a minute the plain way: the row table is read and searched anew for each"
    file,n = deck.store.codes.folder/'rows.parquet', 8
    def one(f):
        rows,values = deck.store.load(f)
        t = pd.read_parquet(file)
        t['a'] = 0.
        t.loc[rows, 'a'] = values.astype('f8')
        top = t.nlargest(10, 'a')
        near = [t[(t.episode==e) & (t.step==s)] for e,s in zip(top.episode, top.step)]
        share = t[t.a>0].token.value_counts(normalize=True)/t.token.value_counts(normalize=True)
        return np.histogram(values, 40), top, near, share.nlargest(10)
    _,seconds = timed(lambda: [one(f) for f in range(n)])
    return n/seconds*60, 'the row table read and searched anew for each, no test, no page'


def card_rows(root):
    "Cards a minute"
    from_tokens(root, 'warm') # compiles
    deck,before = timed(lambda: from_tokens(root, 'timed'))
    written(deck, 8, root/'warm_cards')
    with Peak() as peak: _,seconds = timed(lambda: written(deck, N_CARDS, root/'cards'))
    size = sum(f.stat().st_size for f in (root/'cards').glob('*.html'))/N_CARDS
    rate,peer = N_CARDS/seconds*60, plainly(deck)
    whole = LATENTS/(before+LATENTS*seconds/N_CARDS)*60
    named,bar = f'cards from a store, {size/1e3:.0f} kB each, one process', '1,000 cards/min'
    rows = [row(named, 'cards/min', rate, *peer, peak.mb, bar, rate>=1000)]
    if SAE_DASHBOARD: peer = dashboard(root)
    named = f'cards of all {LATENTS:,} latents, from tokens on'
    return [*rows, row(named, 'cards/min', whole, *peer, peak.mb, bar, whole>=1000)]


# Statistics and enrichment of many latents

def codes_of(folder):
    "Half of the latents fire on some token, all more or less often as words do"
    g = np.random.default_rng(0)
    p = 1/(np.arange(F)+50)**1.05
    q = 1/(np.arange(VOCABULARY)+5)
    token = g.choice(VOCABULARY, ROWS, p=q/q.sum())
    def chunk(a, n):
        f = np.random.default_rng(a).choice(F, n*K, p=p/p.sum()).reshape(n, K)
        f[:,:6] = (token[a:a+n,None]*6+np.arange(6))%F
        f = np.sort(f.astype('i4'), 1)
        new = np.ones_like(f, bool)
        new[:,1:] = f[:,1:]!=f[:,:-1]
        values = np.random.default_rng(a+1).gamma(2, 1, int(new.sum())).astype('f4')
        return sparse.csr_matrix((values, f[new], np.r_[0, np.cumsum(new.sum(1))]), (n, F))
    i,names = np.arange(ROWS), np.array([f'tok{j}' for j in range(VOCABULARY)], dtype=object)
    rows = pd.DataFrame(dict(episode=i//500, step=i%500//250, position=i%250, token=names[token],
                             task=np.array(['push','pull','open','close'])[i//500%4],
                             split=np.where(i//500%5==0, 'validation', 'train')))
    size = min(ROWS, 62_500)
    return write_codes(folder, (chunk(a, min(size, ROWS-a)) for a in range(0, ROWS, size)), rows, F, chunk_rows=size)


def all_rows(root):
    "Everything about 24,576 latents before the first card"
    codes = codes_of(root/'all')
    store = CodeStore(codes.folder)
    with Peak() as first: _,counted = timed(lambda: statistics(codes))
    with Peak() as second: found,tested = timed(lambda: enrich(store))
    said = f'of {F:,} latents, {codes.nnz/1e6:.1f} M nonzeros'
    whole,mb = counted+tested, max(first.mb, second.mb)
    shuffled = found.about['audit']['shuffled']['rate']
    named,bar = f'enrichment {said}, {found.about["n_tests"]/1e6:.0f} M tests', (300., 'the bar')
    return [row(f'statistics {said}', 's', counted, *bar, first.mb), row(named, 's', tested, *bar, second.mb),
            row('both together', 's', whole, *bar, mb, '300 s, 2 GB', whole<=300 and mb<=2000),
            row('enriched if shuffled between episodes', 'share', shuffled, .05, 'the bar', 0, '5%', shuffled<=.05)]


if __name__=='__main__':
    PARTS = dict(cards=card_rows, all=all_rows)
    ABOUT = ('Cards hold eight strongest examples, one of each tenth and three silent ones, each with 36 tokens around '
             'it; enrichment with intervals, neighbours, partners and influences. Both start from the same model, '
             'autoencoder and tokens. SAEDashboard 0.8.0 asks for transformer-lens 2, transformers 4.56 and typer '
             '0.12; it was run beside transformer-lens 3.9 and transformers 5, outside its pins, with two threads; '
             'its page has neither enrichment nor intervals. The latents of the second part are synthetic.')
    run(PARTS, ARGS, title='Cards of latents', about=ABOUT, tokens=WINDOWS*(CONTEXT-1), latents=LATENTS)
