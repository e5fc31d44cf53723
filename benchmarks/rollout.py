"""How fast trials run: ours beside Meta-World's own environments, the same physics and the same policy in one run;
and a walker's

    python benchmarks/rollout.py [--quick] [--json FILE]
"""
import resource, sys
from itertools import product
import numpy as np
import torch
from steerlens.core import threads
from steerlens.sae.models import new_sae
from steerlens.steer.edits import (Ablate, Add, Intervention, Latents, Override, Pid, Setpoint, Steps, Stream,
                                   intervened)
from steerlens.steer.trials import Lab
from steerlens.subjects.base import Ctx
from steerlens.subjects.nano_vla import tokenize, trials_of
from steerlens.subjects.scenes import KINDS, TASKS, Scene
from steerlens.subjects.settle import settle
from table import args, finish, race, rate, resident

ARGS = args(__doc__)
QUICK = ARGS.quick
N = 500 if QUICK else 3000   # control steps
TRIALS = 32 if QUICK else 128


def step_rows(name):
    "Control steps a second, observation and outcome included: ours, Meta-World's, and the physics alone"
    scene,act = Scene(name), np.array([.3,.3,-.2,-1.], dtype=np.float32)
    world,env = scene.reset(0), Scene(name).env
    env.max_path_length, env._set_task_called = 10**9, True
    def ours():
        for _ in range(N): scene.step(world, act); scene.observe(world); scene.events(world)
    def theirs():
        for _ in range(N): env.step(act)
    def floor():
        for _ in range(N): scene.mj.mj_step(scene.model, world.data, nstep=5)
    mine = rate(ours, N)
    return [dict(name=f'control step, {name}', ours=mine, peer=rate(f, N), peer_name=who, unit='steps/s')
            for f,who in ((theirs, 'metaworld 3.1.1 env.step'), (floor, 'bare mj_step, the limit'))]


def memory_row():
    "Resident memory of 64 episodes: one model and 64 states, or an environment each"
    n,before = 64, resident()
    scene = Scene('puck')
    worlds = [scene.reset(i) for i in range(n)]
    ours,before = resident()-before, resident()
    envs = [Scene('puck').env for _ in range(n)]
    peer = dict(peer=resident()-before, peer_name='metaworld, one env an episode')
    return dict(name=f'memory of {n} episodes, puck', ours=ours, unit='MB', **peer)


def trial_rows(subject, trials, site, vector):
    "Steered trials a second, every one under an intervention of its own: batched, and one at a time as scripts do"
    edits = [Intervention(site, 'all', Add(vector)).placebo(i) for i in range(len(trials))]
    few = len(trials)//8
    def alone(lab):
        for t,e in zip(trials[::8], edits[::8]): lab.run([t], [e])
    quiet = open('/dev/null', 'w')
    out,sys.stdout = sys.stdout, quiet
    try:
        who = settle(subject)
        with Lab(who, 1) as one, Lab(who, 2, chunk=len(trials)//2) as two:
            two.run(trials, edits) # start the workers
            peer = rate(lambda: alone(one), few, 1)
            labs = {'one process': one, 'two processes': two}
            found = {k: rate(lambda: lab.run(trials, edits), len(trials), 2) for k,lab in labs.items()}
    finally: sys.stdout = out
    beside = dict(peer=peer, peer_name='the same policy, one episode at a time', unit='trials/s')
    bar = {} if subject=='nano_vla' else dict(bar='4x')
    rows = [dict(name=f'steered trials of {subject}, {k}', ours=v, **beside, **bar) for k,v in found.items()]
    return [r | dict(met=bool(r['ours'] >= 4*peer)) if bar else r for r in rows]


def edit_rows(n=64, site='lm.1.out'):
    "Runs a second under an edit of each of 64 rows, beside the same runs without: what an edit costs"
    policy,g = settle('nano_vla').subject, torch.Generator().manual_seed(0)
    words = torch.tensor([tokenize('pull the puck back')]*n)
    inputs = words, torch.randn(n, 11, generator=g), torch.randn(n, 8, 4, generator=g)
    v,sae = torch.ones(128), new_sae(128, 1024, k=16)
    at = Ctx(row_B=torch.arange(n), step_B=torch.zeros(n, dtype=torch.long))
    kinds = dict(add=Add(v), share=Add(v, .1, share=True), ablate=Ablate(v), setpoint=Setpoint(v, 0., -1., 1.),
                 pid=Pid(v, 0., 1.), override=Override((3, 5), 1., 128), latents=Latents(sae, (3, 5), 0.))
    rows = []
    for (name,e),gate in product(kinds.items(), (None, Steps(end=8) & ~Stream(('state',)))):
        edits,n_runs = [Intervention(site, 'all', e, gate)]*n, 3 if QUICK else 20
        def plain():
            for _ in range(n_runs): policy.run(*inputs, ctx=at)
        def edited():
            with intervened(policy, edits): plain()
        with threads(1): ours,peer,_ = race(n_runs, edited, plain, repeat=10)
        told = f"edit '{name}'{', gated' if gate else ''}: a run of {n} decisions"
        beside = dict(peer=peer, peer_name='the same run without an edit', bar='97% of it', met=bool(ours >= .97*peer))
        rows.append(dict(name=told, ours=ours, unit='runs/s', **beside))
    return rows


def main():
    rows = [r for k in KINDS for r in step_rows(k)] + [memory_row()]
    told = [t for task in TASKS for t in trials_of(task, TRIALS//len(TASKS), 0)]
    rows += trial_rows('nano_vla', told, 'lm.0.out', torch.ones(128)*.05)
    rows += trial_rows('walker', [*range(TRIALS)], 'h.1.out', torch.ones(64)*.001)
    write = settle('nano_lm').module.steering()
    rows += trial_rows('nano_lm', write.trials('function', TRIALS, 0), 'blocks.1.hook_resid_post', torch.ones(256)*.01)
    rows += edit_rows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3
    about = "Control steps, steered trials and memory; memory is the whole run's peak."
    finish([r | dict(memory_mb=peak) for r in rows], ARGS, title='Rollouts', about=about)


if __name__=='__main__': main()
