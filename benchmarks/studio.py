"""The policy studio: interpretation beside scikit-learn's RidgeCV, and steered walks beside the bare simulator

    python benchmarks/studio.py [--quick] [--json FILE] [--only speed,weights,walks]
"""
from functools import cache
import numpy as np
import torch
from steerlens.app.interpret import LAMBDA, LAMBDAS, Interpreter
from steerlens.app.policies import as_policy, embedded, site_of
from steerlens.app.worlds import WORLDS, rollout
from steerlens.core import generator, rng
from steerlens.steer.edits import Add, Intervention
from table import Peak, args, race, run, timed

ARGS = args(__doc__)
QUICK = ARGS.quick
ROWS,LATENTS,ACTIVE,EPISODES = (10_000, 256, 16, 50) if QUICK else (50_000, 1024, 32, 100)
BAR = 2. # Seconds from codes to sorted latents, at the full size
WALKS,STEPS = (16, 100) if QUICK else (64, 400)


@cache
def data():
    "Codes of a TopK autoencoder whose latents differ in how often they are active, a target, and episodes"
    g = rng('studio')
    scores = g.random((ROWS, LATENTS), dtype='f4')*np.linspace(.8, 1, LATENTS, dtype='f4')
    at = np.argpartition(scores, -ACTIVE)[:,-ACTIVE:]
    z = np.zeros((ROWS, LATENTS), 'f4')
    np.put_along_axis(z, at, g.gamma(2, 1, at.shape).astype('f4'), 1)
    w = g.standard_normal(LATENTS)*(g.random(LATENTS) < .05)
    return z, z@w + g.standard_normal(ROWS), np.arange(ROWS)*EPISODES//ROWS


def ridge_cv(**how):
    "scikit-learn's RidgeCV, in the codes' own float32"
    from sklearn.linear_model import RidgeCV
    z,y,_ = data()
    return RidgeCV(LAMBDAS, **how).fit(z, y)


@cache
def ready(): return Interpreter(data()[0], data()[2])


@cache
def by_groups():
    "RidgeCV with whole episodes held out, the same as ours, and its seconds"
    rows = ready().rows
    everyone = np.arange(ROWS)
    return timed(lambda: ridge_cv(cv=[(np.setdiff1d(everyone, r), r) for r in rows]))


def peer(what):
    from sklearn import __version__
    return f'scikit-learn {__version__} {what}'


def speed(_):
    "From codes to sorted latents with a chosen lambda, and one more target"
    z,y,episode = data()
    def ours(): return Interpreter(z, episode).fit(y, lam='cv').top()
    seconds = min(timed(ours)[1] for _ in range(3))
    with Peak() as peak: ours()
    by_rows = timed(ridge_cv)[1]
    again = min(timed(lambda: ready().fit(y, lam='cv'))[1] for _ in range(3))
    held = {} if QUICK else dict(bar=f'{BAR:g} s', met=bool(seconds <= BAR))
    more = dict(unit='s', memory_mb=peak.mb)
    size = f'{LATENTS:,} latents, {ROWS:,} rows, {len(LAMBDAS)} lambdas'
    whole = more | held | dict(name=f'codes to sorted latents, {size}', ours=seconds)
    one_left = peer('RidgeCV, leave-one-row-out, no score held out')
    return [whole | dict(peer=by_groups()[1], peer_name=peer('RidgeCV, the same folds, no score held out')),
            whole | dict(peer=by_rows, peer_name=one_left),
            more | dict(name='one more target', ours=again, peer=by_rows, peer_name=one_left)]


def apart(a, b): return float(abs(a-b).max()/abs(b).max())


def exact(lam):
    "Weights by a QR decomposition of the centred codes, which doesn't square the condition number"
    z,y,_ = data()
    q,r = np.linalg.qr(np.r_[z-z.mean(0, dtype='f8'), lam**.5*np.eye(LATENTS)])
    return np.linalg.solve(r, q.T @ np.r_[y-y.mean(), np.zeros(LATENTS)])


def weights(_):
    "Are they right? Largest error of a weight, as a share of the largest weight"
    from sklearn.linear_model import Ridge
    z,y,_ = data()
    chosen,theirs = ready().fit(y, lam='cv'), by_groups()[0]
    with Peak() as peak: plain = ready().fit(y)
    true,best = exact(LAMBDA), exact(chosen.lam)
    same = dict(unit='share', memory_mb=peak.mb)
    lams = f'lambda {chosen.lam:g} chosen by ours, {theirs.alpha_:g} by the peer'
    return [same | dict(name='error of the weights, lambda 0.01', ours=apart(plain.weight_F, true),
                        peer=apart(Ridge(LAMBDA).fit(z, y).coef_, true), peer_name=peer('Ridge')),
            same | dict(name=f'error of the weights, {lams}', ours=apart(chosen.weight_F, best),
                        peer=apart(theirs.coef_, best), peer_name=peer('RidgeCV, the same folds'))]


def untrained(kind):
    "A perceptron of the walker's size that fits a simulator"
    widths,g = [kind.n_obs, 64, 64, kind.n_act], generator('untrained', kind.name)
    def matrix(n, m): return torch.randn(m, n, generator=g)/n**.5
    layers = {f'{i}.weight': matrix(*sizes) for i,sizes in enumerate(zip(widths, widths[1:]))}
    return as_policy(layers, 'relu', 'tanh')


def bare(kind, done):
    "The same walks in gymnasium's own environment, or in the walker's world"
    import gymnasium
    if kind.name=='walker': env = None
    else: env = gymnasium.make(kind.name, disable_env_checker=True).unwrapped
    for walk in done:
        step = kind.make(walk.seed, False).step if env is None else env.step
        if env: env.reset(seed=walk.seed)
        for action in walk.actions: step(action)


def walks(_):
    "Steps of the simulator a second: steered walks, every one under an edit of its own, beside the simulator alone"
    rows = []
    for kind in WORLDS.values():
        policy = embedded() if kind.name=='walker' else untrained(kind)
        v = torch.randn(64, generator=generator('push'))*.01
        edits = [Intervention(site_of(2), 'all', Add(v)).placebo(i) for i in range(WALKS)]
        def steered(): return rollout(policy, kind, [*range(WALKS)], edits, STEPS)
        done = steered()
        n = sum(w.steps for w in done)
        ours,peer,mb = race(n, steered, lambda: bare(kind, done), repeat=1 if QUICK else 2)
        alone = 'its world' if kind.name=='walker' else f'gymnasium {kind.name}'
        rows.append(dict(name=f'steered walks, {kind.name}', ours=ours, peer=peer, unit='steps/s', memory_mb=mb,
                         peer_name=f'{alone} alone, the same actions'))
    return rows


if __name__=='__main__':
    run(dict(speed=speed, weights=weights, walks=walks), ARGS, title='The policy studio',
        about='From codes to sorted latents; steered walks. Ours holds out episodes and fits five placebos, too.')
