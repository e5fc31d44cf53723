"The pi pair, every site under every kind of gate: what an edit reaches follows from the wiring, to the last bit"
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
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
IO = 'in', 'out'
PARTS = [f'{inside}{io}' for inside in ('', *(f'{p}.' for p in INSIDE)) for io in IO]

# The expert layer that is the first to read an edit of the prefix, and the layer of a site in the expert
READ_AT_ONCE = {'in', f'{NORM}.in', f'{NORM}.out', 'self_attn.in',
                *(f'self_attn.{p}_proj.{io}' for p in 'kv' for io in IO)}
FIRST_READ = {f'lm.{i}.{part}': i if part in READ_AT_ONCE else i+1 for i in range(DEPTH) for part in PARTS}
LAYER = {f'expert.{i}.{part}': i for i in range(DEPTH) for part in PARTS} | {f'expert_norm.{io}': DEPTH for io in IO}

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


def play(edits, site=None):
    "Two decisions: their actions [2, B, ...]; velocities and layers [2, calls, B, ...]; where the site was edited"
    n,g,actions = len(edits), torch.Generator().manual_seed(0), []
    tokens = torch.tensor([tokenize(('push the drawer', 'pull the drawer back')[r%2]) for r in range(n)])
    read = [site] if site else []
    with (threads(1), velocities() as vs, tap(TINY, read) as before, intervened(TINY, edits) as made,
          tap(TINY, read) as after, tap(TINY, LAYERS) as layers):
        for k,step in enumerate(AT):
            told = tuple(event(r, k) for r in range(n))
            ctx = Ctx(step_B=torch.full((n,), step), row_B=torch.arange(n), event_B=told)
            x = torch.randn(n, 11, generator=g), torch.randn(n, 8, 4, generator=g)
            actions.append(TINY.run(tokens, *x, ctx=ctx))
    def by_decision(xs): return torch.stack(xs).unflatten(0, (len(AT), -1))
    return SimpleNamespace(
        actions=torch.stack(actions), velocities=by_decision(vs), made=made.n_edits.tolist(),
        layers=torch.stack([by_decision(layers[s]) for s in LAYERS]),
        edited=by_decision([(a!=b).any(-1) for a,b in zip(before[site], after[site])]) if site else None)


@cache
def plain(n): return play([None]*n)


@cache
def width(site):
    with tap(TINY, site) as seen: TINY.run(torch.ones(1, 7, dtype=int), torch.zeros(1, 11), torch.zeros(1, 8, 4))
    return seen[site][0].shape[-1]


def cases(site, gates):
    "Rows without an edit, with one of length zero, then with one under each gate"
    v = torch.randn(width(site), generator=torch.Generator().manual_seed(1))
    return [None, Intervention(site, 'all', Add(v, 0.)), *(Intervention(site, 'all', Add(v), g) for g,*_ in gates)]


def nothing_happened(run, rows):
    "To the last bit, everywhere"
    usual = plain(len(run.made))
    same = torch.equal(run.actions[:,rows], usual.actions[:,rows])
    return same and torch.equal(run.layers[...,rows,:,:], usual.layers[...,rows,:,:])


def moved(run, what):
    "Where it differs from the run without edits, [...] of [..., T, D]"
    return (getattr(run, what)!=getattr(plain(len(run.made)), what)).flatten(-2).any(-1)


@pytest.mark.parametrize('site', FIRST_READ)
def test_an_edit_of_the_prefix_reaches_the_layers_that_read_it(site):
    run = play(cases(site, IN_PREFIX), site)
    assert nothing_happened(run, [0, 1])
    assert run.made[:2]==[0, len(AT)], 'an edit of length zero is made like any other'
    first,stream = FIRST_READ[site], TINY.token_types(site)
    reached,acted = moved(run, 'layers')[:,:,0].tolist(), moved(run, 'actions').tolist()
    for r,(gate,when,streams) in enumerate(IN_PREFIX, 2):
        on = [when(step, event(r, k), 0) for k,step in enumerate(AT)]
        assert run.made[r]==sum(on), gate
        for k,opened in enumerate(on):
            assert run.edited[k,0,r].tolist()==[opened and t in streams.split() for t in stream], gate
            assert [layer[k][r] for layer in reached]==[opened and i>=first for i in range(DEPTH)], gate
            assert acted[k][r]==(opened and first<DEPTH), gate


@pytest.mark.parametrize('site', LAYER)
def test_an_edit_of_the_expert_begins_at_its_denoising_step(site):
    gates = IN_EXPERT if TINY.token_types(site) else IN_EXPERT[2:] # the norm's tokens are not told apart
    run = play(cases(site, gates), site)
    assert nothing_happened(run, [0, 1])
    assert run.made[:2]==[0, len(AT)*CALLS]
    layers,velocities,acted = (moved(run, what).tolist() for what in ('layers', 'velocities', 'actions'))
    for r,(gate,when) in enumerate(gates, 2):
        on = [[when(step, event(r, k), j) for j in range(CALLS)] for k,step in enumerate(AT)]
        assert run.made[r]==sum(map(sum, on)), gate
        for k,opened in enumerate(on):
            assert run.edited[k,:,r].tolist()==[[o]*8 for o in opened], gate
            since = [any(opened[:j+1]) for j in range(CALLS)]
            assert [v[r] for v in velocities[k]]==since, gate
            assert acted[k][r]==since[-1], gate
            for j in range(CALLS): # the step's own edit reaches its layer and those after it; an earlier one, all
                reached = [any(opened[:j]) or opened[j] and i>=LAYER[site] for i in range(DEPTH)]
                assert [layer[k][j][r] for layer in layers]==reached, gate


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


BETWEEN_LAYERS = [f'{stack}.{i}.{io}' for stack in ('lm', 'expert') for i in (0, 1) for io in IO]


@pytest.mark.parametrize('site', BETWEEN_LAYERS)
def test_every_kind_side_by_side(site):
    "Each row under a kind of its own; one with nothing to change leaves every bit as it was"
    nothing,something = kinds(width(site))
    run = play([None, *(Intervention(site, 'all', e) for e in nothing+something)], site)
    idle = 1+len(nothing)
    assert nothing_happened(run, list(range(idle)))
    assert run.made==[0]+[len(AT)*TINY.calls(site)]*len(nothing+something)
    assert moved(run, 'actions').tolist()==[[False]*idle+[True]*len(something)]*len(AT)


REFUSED = [('lm.0.out', Denoise((0,)), 'no denoising step here'),
           ('expert_norm.out', Stream(('decision',)), 'no stream of a token here')]


@pytest.mark.parametrize('site,gate,says', REFUSED)
def test_a_gate_that_the_site_cannot_answer_is_refused(site, gate, says):
    with pytest.raises(SteerlensError, match=says):
        play([Intervention(site, 'all', Add(torch.ones(width(site))), gate)])


def test_the_list_of_sites_is_complete():
    "All there is inside both stacks but the norms' maps of the flow time, which are the same for all rows"
    for stack in ('lm', 'expert'):
        inside = {f'{stack}.{n}' for n,_ in TINY.model.get_submodule(TINY.aliases[stack]).named_modules() if n}
        listed = {s.rpartition('.')[0] for s in FIRST_READ | LAYER}
        maps = {f'expert.{i}.{norm}.dense' for i in range(DEPTH) for norm in (NORM, LATE_NORM)}
        assert inside-listed==(maps if stack=='expert' else set())
