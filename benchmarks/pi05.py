"""pi0.5 at its true size with random weights: a layer, a whole decision, a harvest, a checkpoint's loading

    python benchmarks/pi05.py [--quick] [--json FILE] [--only layer,load,decision]
"""
import math, shutil, threading, time
from dataclasses import replace
from functools import cache
import torch
from safetensors.torch import load_file, save_file
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from steerlens.core import write_json
from steerlens.subjects.base import tap
from steerlens.subjects.pi import Layer, rope
from steerlens.subjects.pi05 import as_subject
from steerlens.subjects.pi05_files import EMBED, HEAD, dtype_of, empty, load
from steerlens.subjects.pi05_model import FULL
from table import args, race, run, timed

ARGS = args(__doc__)
QUICK = ARGS.quick
CFG = replace(FULL, depth=3, vision_layers=3, vocab=4096) if QUICK else FULL
SITES = ['lm.1.out', 'expert.1.out'] if QUICK else ['lm.14.out', 'expert.14.out']
T = CFG.cameras*CFG.patches + CFG.tokens # Tokens of the prefix: 712
HALF = torch.bfloat16
REPEAT = 2


def row(name, unit, ours, peer, peer_name, mb=0., bar=None, met=None):
    found = dict(name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, memory_mb=mb)
    return found | (dict(bar=bar, met=bool(met)) if bar else {})


def megabytes(tensors): return sum(x.numel()*x.element_size() for x in tensors)/1e6


class Private:
    "Memory of this process's own above what it was, at its highest, in MB: pages of a mapped file are not among it"
    def own(self):
        with open('/proc/self/status') as f: return next(int(l.split()[1]) for l in f if l.startswith('RssAnon'))/1e3

    def watch(self):
        while self.on:
            self.mb = max(self.mb, self.own()-self.before)
            time.sleep(.01)

    def __enter__(self):
        self.before,self.mb,self.on = self.own(), 0., True
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.on = False
        self.thread.join()


BLOCK = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)) # a prime: rows don't repeat each other


@torch.no_grad()
def filled(x):
    "Random, small enough for eighteen layers; one block over and over, since billions take minutes to draw"
    scale = .5/math.sqrt(x[0].numel()) if x.ndim>1 else .01
    block,flat = (BLOCK*scale).to(x.dtype), x.view(-1)
    for i in range(0, len(flat), len(block)): flat[i:i+len(block)] = block[:len(flat)-i]
    return x


def full_layer(expert):
    "A layer at true width in bfloat16"
    width,mlp = (CFG.expert_width, CFG.expert_mlp) if expert else (CFG.width, CFG.mlp)
    layer = Layer(CFG, width, mlp, width if expert else None).to(HALF)
    for n,p in layer.named_parameters():
        if 'layernorm' in n: p.data = p.data.float()
        filled(p.data)
    return layer


@cache
def cached():
    "Keys and values of one prefix"
    g = torch.Generator().manual_seed(1)
    return tuple(torch.randn(1, 1, T, CFG.head_dim, generator=g).to(HALF) for _ in 'kv')


def seconds(expert):
    "A layer's best time, and what it gives"
    layer,g,n = full_layer(expert), torch.Generator().manual_seed(2), CFG.chunk if expert else T
    x = torch.randn(1, n, CFG.expert_width if expert else CFG.width, generator=g).to(HALF)
    cs = rope(torch.arange(n)[None].float() + (T if expert else 0), CFG.head_dim)
    mask = torch.ones(1, 1, 1, n+(T if expert else 0), dtype=bool)
    more = (cached(), torch.randn(1, CFG.expert_width, generator=g)) if expert else ()
    with torch.no_grad(): return layer, x, lambda: layer(x, cs, mask, *more)[0]


def theirs(layer, x):
    "transformers' own layer of this size, with these weights"
    config = GemmaConfig(hidden_size=CFG.width, intermediate_size=CFG.mlp, num_attention_heads=8, num_key_value_heads=1,
                         head_dim=CFG.head_dim, hidden_activation='gelu_pytorch_tanh', attn_implementation='sdpa')
    peer = GemmaDecoderLayer(config, 0).to(HALF)
    peer.load_state_dict(layer.state_dict())
    c,s = (torch.cat([a,a], -1)[:,0].to(HALF) for a in rope(torch.arange(T)[None].float(), CFG.head_dim))
    mask = torch.ones(1, 1, T, T, dtype=bool)
    def go():
        out = peer(x, attention_mask=mask, position_embeddings=(c,s))
        return out[0] if isinstance(out, tuple) else out
    return go


def matrices(layer, x):
    "The products alone"
    a,m = layer.self_attn, layer.mlp
    wide = torch.zeros(1, x.shape[1], m.up_proj.out_features, dtype=HALF)
    heads = torch.zeros(1, x.shape[1], a.q_proj.out_features, dtype=HALF)
    def go():
        for l in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj): l(x)
        return a.o_proj(heads), m.down_proj(wide)
    return go


def layer(_):
    rows = []
    with torch.inference_mode():
        for name,expert in (('prefix', False), ('expert', True)):
            layer,x,ours = seconds(expert)
            peer = matrices(layer, x) if expert else theirs(layer, x)
            if not expert: assert (ours()-peer()).norm()/peer().norm() < .02
            mine,other,_ = race(x.shape[1], ours, peer, repeat=10)
            who = 'its matrix products alone' if expert else "transformers' GemmaDecoderLayer"
            rows.append(row(f'{name} layer, bf16, {list(x.shape)}', 'tokens/s', mine, other, who,
                            megabytes(layer.parameters())))
    return rows


def write(folder):
    "A checkpoint of openpi's form in many files, drawn one file at a time"
    where = {}
    named = [(n, p.shape) for n,p in empty(CFG).named_parameters() if n!=HEAD]
    named = [(HEAD if n==EMBED else n, shape) for n,shape in named]
    for i,part in enumerate(range(0, len(named), 100)):
        file = f'model-{i:05}.safetensors'
        save_file({n: filled(torch.empty(shape, dtype=HALF)) for n,shape in named[part:part+100]}, folder/file)
        where |= {n: file for n,_ in named[part:part+100]}
    write_json(folder/'model.safetensors.index.json', dict(weight_map=where))
    return sorted(folder.glob('*.safetensors'))


MODEL = {}

def load_rows(folder):
    "Gigabytes a second into memory, and how much of it beside the model itself"
    files = write(folder)
    size = sum(f.stat().st_size for f in files)/1e9
    def bare():
        for f in files: load_file(f)
    peer = size/timed(bare)[1]
    with Private() as peak: MODEL['it'],spent = timed(lambda: load(folder, CFG, HALF))
    shutil.rmtree(folder)
    mb = megabytes(MODEL['it'].parameters())
    name = f'checkpoint of {size:.1f} GB, checked'
    return [row(name, 'GB/s', size/spent, peer, 'load_file, dropped again', peak.mb),
            row('memory at its highest', 'MB', peak.mb, mb, 'the model itself', peak.mb, '115%', peak.mb < 1.15*mb)]


def drawn():
    "The policy without a checkpoint"
    model = empty(CFG)
    for name,p in [*model.named_parameters()]:
        path,_,leaf = name.rpartition('.')
        value = filled(torch.empty(p.shape, dtype=dtype_of(name, HALF)))
        setattr(model.get_submodule(path), leaf, torch.nn.Parameter(value))
    model.paligemma_with_expert.paligemma.lm_head.weight = model.get_parameter(EMBED)
    model.sees.vision_tower.vision_model.embeddings.position_ids = torch.arange(CFG.patches)[None]
    return model.eval()


def decision(_):
    "Whole decisions: beside the forecast from one layer, and with two sites harvested"
    model = MODEL.get('it') or drawn()
    who,g = as_subject(model), torch.Generator().manual_seed(4)
    given = (torch.randn(1, CFG.cameras, 3, CFG.image, CFG.image, generator=g).clamp(-1, 1),
             torch.randint(1, CFG.vocab, (1, CFG.tokens), generator=g),
             torch.randn(1, CFG.chunk, CFG.action_dim, generator=g))
    mask = torch.ones(1, T, dtype=bool)
    def bare(): return who.run(*given, attention_mask=mask)
    def harvest():
        with tap(who, SITES) as acts: bare()
        assert [len(acts[s]) for s in SITES]==[1, CFG.steps]
    assert bare().isfinite().all()
    mine,peer,mb = race(1, harvest, bare, repeat=REPEAT)
    with torch.inference_mode():
        one = [min(timed(f)[1] for _ in range(10)) for f in (seconds(False)[2], seconds(True)[2])]
        eyes = model.sees.vision_tower.vision_model
        one.append(min(timed(lambda: eyes(given[0][0]))[1] for _ in range(2)))
    told = CFG.depth*(one[0]+CFG.steps*one[1]) + one[2]
    names = f"prefix {one[0]*1e3:.0f} ms, expert {one[1]*1e3:.1f} ms a layer, eyes {one[2]:.1f} s"
    kept = f"decision while {' and '.join(SITES)} are kept"
    return [row(kept, 'decisions/s', mine, peer, 'the bare one', mb, '90%', mine >= .9*peer),
            row('decision, seconds', 's', 1/peer, told, f'forecast: {names}', megabytes(model.parameters()))]


if __name__=='__main__':
    about = 'Random weights of the true sizes on a CPU, bfloat16 as on a GPU: nothing is said of what the policy does.'
    run(dict(layer=layer, load=load_rows, decision=decision), ARGS, title='pi0.5', about=about)
