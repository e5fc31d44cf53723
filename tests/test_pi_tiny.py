"The pi pair, every site under every kind of gate: what an edit reaches follows from the wiring, to the last bit"
from contextlib import contextmanager
from functools import cache
import pytest
import torch
from steerlens.core import SteerlensError, threads
from steerlens.steer.edits import (Ablate, Add, Call, Denoise, During, Intervention, Latents, Override, Setpoint, Steps,
                                   Stream, intervened)
from steerlens.subjects import pi_tiny
from steerlens.subjects.base import Ctx, tap
from steerlens.subjects.nano_vla_model import tokenize

TINY = pi_tiny.subject()
DEPTH,CALLS = 3, 10
AT = 0, 4 # Steps of the two decisions that are run
EVENTS = 'push', 'pull', None

# -- the wiring: a layer's keys and values are made of its normed input; all else is read by the next layer

NORM,LATE_NORM = 'input_layernorm', 'post_attention_layernorm'
INSIDE = [NORM, 'self_attn', *(f'self_attn.{p}_proj' for p in 'qkvo'), LATE_NORM, 'mlp',
          *(f'mlp.{p}_proj' for p in ('gate', 'up', 'down'))]
PARTS = [f'{inside}{io}' for inside in ('', *(f'{p}.' for p in INSIDE)) for io in ('in', 'out')]
READ_AT_ONCE = {'in', f'{NORM}.in', f'{NORM}.out', 'self_attn.in',
                *(f'self_attn.{p}_proj.{io}' for p in 'kv' for io in ('in', 'out'))}
PREFIX = [(f'lm.{i}.{part}', i, part) for i in range(DEPTH) for part in PARTS]
EXPERT = [(f'expert.{i}.{part}', i, part) for i in range(DEPTH) for part in PARTS]
FIRST_READ = {site: i if part in READ_AT_ONCE else i+1 for site,i,part in PREFIX} # expert layer that sees it first
EXPERT += [(f'expert_norm.{io}', DEPTH, io) for io in ('in', 'out')]
LAYER = {site: i for site,i,_ in EXPERT}
EVERYWHERE = [*PREFIX, *EXPERT]

# -- the gates: each with the runs and calls in which it should be open, and the tokens it leaves open

ALWAYS = [
    (None, lambda step, event, call: True),
    (Steps(4), lambda step, event, call: step>=4),
    (Steps(end=4), lambda step, event, call: step<4),
    (Steps(8), lambda step, event, call: False),
    (During(('push',)), lambda step, event, call: event=='push'),
    (~During(('push',)), lambda step, event, call: event!='push'),
    (During(('pull',)) | Steps(4), lambda step, event, call: event=='pull' or step>=4),
    (~(During(('push', 'pull')) | Steps(4)), lambda step, event, call: event is None and step<4),
    (Call((0,)), lambda step, event, call: call==0),
    (~Call((0,)), lambda step, event, call: call!=0),
]
IN_PREFIX = [(gate, when, 'state instruction plan') for gate,when in ALWAYS] + [
    (Stream(('plan',)), lambda step, event, call: True, 'plan'),
    (~Stream(('plan', 'state')), lambda step, event, call: True, 'instruction'),
    (Stream(('state',)) & Steps(4), lambda step, event, call: step>=4, 'state'),
]
IN_EXPERT = [
    (Stream(('decision',)), lambda step, event, call: True),
    (~Stream(('decision',)), lambda step, event, call: False),
    *ALWAYS,
    *[(Denoise((j,)), lambda step, event, call, j=j: call==j) for j in range(CALLS)],
    (Denoise((3, 7)), lambda step, event, call: call in (3, 7)),
    (Call((6,)), lambda step, event, call: call==6),
    (~Denoise((0, 1)) & Steps(4), lambda step, event, call: call>1 and step>=4),
    (Denoise((8,)) | During(('pull',)) & Call((5,)), lambda step, event, call: call==8 or event=='pull' and call==5),
]


def event(row, k): return EVENTS[(row+k)%3]


@contextmanager
def velocities():
    "Every velocity, without the hooks that are being tested"
    found = []
    handle = TINY.model.action_out_proj.register_forward_hook(lambda m, args, out: found.append(out.clone()))
    try: yield found
    finally: handle.remove()


LAYERS = [f'expert.{i}.out' for i in range(DEPTH)]


def play(edits, read):
    "Two decisions: actions [2, B, ...], velocities and what passes some sites [2, calls, B, ...]; edits made"
    n,g,actions = len(edits), torch.Generator().manual_seed(0), []
    tokens = torch.tensor([tokenize(('push the drawer', 'pull the drawer back')[r%2]) for r in range(n)])
    with threads(1), intervened(TINY, edits) as made, tap(TINY, [*dict.fromkeys([*LAYERS, *read])]) as seen:
        with velocities() as vs:
            for k,step in enumerate(AT):
                told = tuple(event(r, k) for r in range(n))
                ctx = Ctx(step_B=torch.full((n,), step), row_B=torch.arange(n), event_B=told)
                x = torch.randn(n, 11, generator=g), torch.randn(n, 8, 4, generator=g)
                actions.append(TINY.run(tokens, *x, ctx=ctx))
    def by_decision(xs): return torch.stack(xs).unflatten(0, (len(AT), -1))
    return torch.stack(actions), by_decision(vs), {s: by_decision(xs) for s,xs in seen.items()}, made.tolist()


@cache
def plain(n): return play([None]*n, [s for s,*_ in EVERYWHERE])


def run_cases(site, gates):
    "Rows without an edit, with one of length zero, then with one under each gate; and the same rows without edits"
    usual = plain(2+len(gates))
    v = torch.randn(usual[2][site].shape[-1], generator=torch.Generator().manual_seed(1))
    edits = [None, Intervention(site, 'all', Add(v, 0.)), *(Intervention(site, 'all', Add(v), g) for g,*_ in gates)]
    return play(edits, [site]), usual


def same(a, b): return torch.equal(a, b)


def nothing_happened(rows, run, usual):
    "To the last bit, everywhere"
    (actions,velocity,seen,_),(actions_0,velocity_0,seen_0,_) = run, usual
    layers = all(same(seen[s][:,:,rows], seen_0[s][:,:,rows]) for s in LAYERS)
    return layers and same(actions[:,rows], actions_0[:,rows]) and same(velocity[:,:,rows], velocity_0[:,:,rows])


def differs(x, y): return (x!=y).flatten(-2).any(-1) # [..., T, D] -> [...]


@pytest.mark.parametrize('site', [s for s,*_ in PREFIX])
def test_an_edit_of_the_prefix_reaches_the_layers_that_read_it(site):
    run,usual = run_cases(site, IN_PREFIX)
    assert nothing_happened([0, 1], run, usual)
    assert run[3][:2]==[0, len(AT)], 'an edit of length zero is made like any other'
    first,stream = FIRST_READ[site], TINY.token_types(site)
    tokens = (run[2][site]!=usual[2][site]).any(-1)[:,0].tolist()
    reached = torch.stack([differs(run[2][s], usual[2][s])[:,0] for s in LAYERS], -1).tolist()
    acted = differs(run[0], usual[0]).tolist()
    for r,(gate,when,streams) in enumerate(IN_PREFIX, 2):
        on = [when(step, event(r, k), 0) for k,step in enumerate(AT)]
        assert run[3][r]==sum(on), gate
        for k,opened in enumerate(on):
            assert tokens[k][r]==[opened and t in streams.split() for t in stream], gate
            assert reached[k][r]==[opened and layer>=first for layer in range(DEPTH)], gate
            assert acted[k][r]==(opened and first<DEPTH), gate


@pytest.mark.parametrize('site', [s for s,*_ in EXPERT])
def test_an_edit_of_the_expert_begins_at_its_denoising_step(site):
    gates = IN_EXPERT if TINY.token_types(site) else IN_EXPERT[2:] # the norm's tokens are not told apart
    run,usual = run_cases(site, gates)
    assert nothing_happened([0, 1], run, usual)
    assert run[3][:2]==[0, len(AT)*CALLS]
    i = LAYER[site]
    tokens = (run[2][site]!=usual[2][site]).any(-1).tolist()
    reached = torch.stack([differs(run[2][s], usual[2][s]) for s in LAYERS], -1).tolist()
    moved,acted = differs(run[1], usual[1]).tolist(), differs(run[0], usual[0]).tolist()
    for r,(gate,when) in enumerate(gates, 2):
        on = [[j for j in range(CALLS) if when(step, event(r, k), j)] for k,step in enumerate(AT)]
        assert run[3][r]==sum(map(len, on)), gate
        for k,opened in enumerate(on):
            first = min(opened, default=CALLS)
            assert [v[r] for v in moved[k]]==[j>=first for j in range(CALLS)], gate
            assert acted[k][r]==(first<CALLS), gate
            assert not any(any(x[r]) for x in tokens[k][:first]), gate
            if first==CALLS: continue
            assert all(tokens[k][first][r]), gate
            assert reached[k][first][r]==[layer>=i for layer in range(DEPTH)], gate


class Reader:
    "An SAE whose latents are the first four coordinates"
    def __init__(self, width): self.W_dec = torch.eye(4, width)
    def encode(self, x): return x[:,:4].relu()


def kinds(width):
    "Each kind of edit twice: so that there is nothing to change, and so that there is"
    w,sae = torch.randn(width, generator=torch.Generator().manual_seed(2)), Reader(width)
    nothing = [Add(w, 0.), Add(w, 0., share=True), Setpoint(w, 0., -1e6, 1e6), Latents(sae, (0,1), 1.)]
    return nothing, [Add(w), Add(w, .5, share=True), Setpoint(w, 0., 9., 9.), Latents(sae, (0,1), 3.), Ablate(w),
                     Override((0,3), 2., width)]


LAYER_SITES = [f'{stack}.{i}.{io}' for stack in ('lm', 'expert') for i in (0, 1) for io in ('in', 'out')]


@pytest.mark.parametrize('site', LAYER_SITES)
def test_every_kind_side_by_side(site):
    "Each row under a kind of its own; one with nothing to change leaves every bit as it was"
    nothing,something = kinds(TINY.model.cfg.width if site.startswith('lm') else TINY.model.cfg.expert_width)
    edits = [None, *(Intervention(site, 'all', e) for e in nothing+something)]
    run,usual = play(edits, [site]), plain(len(edits))
    same_rows = list(range(1+len(nothing)))
    assert nothing_happened(same_rows, run, usual)
    assert run[3]==[0]+[len(AT)*TINY.calls(site)]*(len(edits)-1)
    acted = differs(run[0], usual[0]).all(0).tolist()
    assert acted==[False]*len(same_rows)+[True]*len(something)


REFUSED = [('lm.0.out', 32, Denoise((0,)), 'no denoising step here'),
           ('expert_norm.out', 16, Stream(('decision',)), 'no stream of a token here'),
           ('action_in_proj.out', 16, None, 'computed 20 times in 2 run')]


@pytest.mark.parametrize('site,width,gate,says', REFUSED)
def test_what_a_site_does_not_tell_is_refused(site, width, gate, says):
    with pytest.raises(SteerlensError, match=says):
        play([Intervention(site, 'all', Add(torch.ones(width)), gate)], [])


def test_the_list_of_sites_is_complete():
    "All there is inside both stacks but the norms' maps of the flow time, which are the same for all rows"
    for stack in ('lm', 'expert'):
        inside = {f'{stack}.{n}' for n,_ in TINY.model.get_submodule(TINY.aliases[stack]).named_modules() if n}
        listed = {s.rpartition('.')[0] for s,*_ in EVERYWHERE}
        maps = {f'expert.{i}.{norm}.dense' for i in range(DEPTH) for norm in (NORM, LATE_NORM)}
        assert inside-listed==(maps if stack=='expert' else set())
