"""A tuned lens on nano_lm: rows a second of training, beside the tuned-lens package and a plain torch loop

    python benchmarks/lens_tuned.py [--quick] [--json FILE]

All train a map for the embedding and for each layer but the last, on the same windows, the model's own run included.
The package's step is that of its `scripts/train_loop.py`, with bfloat16 autocast as there; it is left out where
`tuned_lens.nn` can't be imported (`pip install --no-deps tuned-lens` is enough for it).
"""
import os
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
import torch
from steerlens.core import root
from steerlens.lens.tuned import TunedLens, Tuning, tune
from steerlens.subjects import nano_lm
from steerlens.subjects.base import alone
from steerlens.subjects.lm import batches
from table import Peak, args, run, timed

SITES = ['blocks.0.hook_resid_pre', *(f'blocks.{i}.hook_resid_post' for i in range(4))]


def ours(lm, windows):
    "Rows a second of `tune`, measuring left out"
    with redirect_stdout(StringIO()): log = tune(TunedLens(lm, SITES), lm, windows, windows[:1], None, Tuning(epochs=1))
    return log.rows_per_s.iloc[-1]


def looped(lm, windows, lens, params, bf16):
    "Rows a second of a loop with a map a layer: `lens(h, i)` gives logits"
    opt = torch.optim.Adam(params, 1e-3)
    def epoch():
        for i in range(len(windows)):
            with torch.no_grad(): out = lm.model(windows.ids(i)[0], output_hidden_states=True, use_cache=False)
            target = out.logits.float().log_softmax(-1)
            for j,h in enumerate(out.hidden_states[:-1]):
                with torch.autocast('cpu', torch.bfloat16, bf16):
                    loss = (target.exp()*(target-lens(h, j).log_softmax(-1))).sum(-1).mean()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.)
            opt.step()
            opt.zero_grad()
    with alone(lm): seconds = timed(epoch)[1]
    return sum(windows.ids(i)[0].numel() for i in range(len(windows)))/seconds


def plain(lm, windows):
    "An `nn.Linear` a layer, in float32"
    maps = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in SITES[:-1])
    return looped(lm, windows, lambda h, i: lm.read(h+maps[i](h)), [*maps.parameters()], False)


def package(lm, windows):
    "The module and the step of tuned-lens"
    from tuned_lens.nn.lenses import TunedLens as Theirs
    lens = Theirs.from_model(lm.model)
    for p in lens.unembed.parameters(): p.requires_grad_(False)
    return looped(lm, windows, lambda h, i: lens(h, idx=i), [p for p in lens.parameters() if p.requires_grad], True)


def tuned(folder, quick=False, repeat=3):
    "Rows of the table; `folder` holds the text"
    lm = nano_lm.subject()
    for p in lm.model.parameters(): p.requires_grad_(False)
    text = nano_lm.tokens(folder/'text', 'train')
    windows = batches(text, root()/nano_lm.WEIGHTS, 256, 32 if quick else 128, 8)
    peers = {'plain torch loop, float32': plain}
    if find_spec('tuned_lens'): peers = {'tuned-lens 0.2.0, bf16 autocast': package} | peers
    best = {}
    for _ in range(repeat): # taking turns
        for name,f in dict(ours=ours, **peers).items(): best[name] = max(best.get(name, 0), f(lm, windows))
    with Peak() as peak: ours(lm, windows)
    return [dict(name='tuned lens training: nano_lm, 4 maps', unit='rows/s', ours=best['ours'], peer=best[name],
                 peer_name=name, memory_mb=peak.mb) for name in peers]


if __name__=='__main__':
    a = args(__doc__)
    run(dict(tuned=lambda folder: tuned(folder, a.quick)), a, title='Tuned lenses', load=round(os.getloadavg()[0], 1),
        about='Training of a tuned lens on nano_lm, the run of the model included.')
