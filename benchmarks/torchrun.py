"""Training in two processes of one thread beside one process of two threads, on the same cores and the same batches

    python benchmarks/torchrun.py [--quick] [--json FILE]

On one processor, threads share the weights and processes have to send them: the table says what that costs.
"""
import os, sys
from pathlib import Path
import torch
from steerlens.core import read_json, write_json
from steerlens.sae.models import new_sae
from steerlens.sae.ranks import a_rank, start
from steerlens.sae.step import FastStep
from table import args, run, timed

SHAPES = [(768, 6144, 32, 2048)] if '--quick' in sys.argv else [(768, 6144, 32, 2048), (768, 24_576, 32, 2048)]
STEPS = 4 if '--quick' in sys.argv else 8


def measure(shape, to):
    "Rows a second of some updates, the best of three times, written by the first process"
    d,F,k,B = map(int, shape)
    with a_rank() as ranks:
        x = torch.randn(B, d, generator=torch.Generator().manual_seed(0))
        step = FastStep(new_sae(d, F, k, x_BD=x), ranks=ranks)
        step.step(x, 1e-3)
        seconds = min(timed(lambda: [step.step(x, 1e-3) for _ in range(STEPS)])[1] for _ in range(3))
        if ranks.first: write_json(to, dict(rate=STEPS*B/seconds))


def rate(processes, threads, shape, to):
    "Of so many processes of so many threads"
    os.environ['OMP_NUM_THREADS'] = str(threads)
    start(processes, __file__, '--measure', *map(str, shape), str(to))
    return read_json(to)['rate']


def rows(root):
    "Two processes beside two threads, and both beside one thread"
    found = []
    for shape in SHAPES:
        d,F,k,B = shape
        one,two,threads = (rate(*how, shape, Path(root)/'rate.json') for how in ((1, 1), (2, 1), (1, 2)))
        name = f'{d} -> {F:,}, k={k}, batch {B:,}'
        alone = one, '1 process, 1 thread'
        pairs = [(two, '2 processes', threads, '1 process, 2 threads'), (two, '2 processes', *alone),
                 (threads, '2 threads', *alone)]
        for ours,of,peer,peer_of in pairs:
            told = dict(peer_name=peer_of, unit='rows/s', memory_mb=0)
            found.append(dict(name=f'{name}: {of}', ours=ours, peer=peer) | told)
    return found


ABOUT = ' '.join(__doc__.split('\n\n')[-1].split())

if __name__=='__main__':
    if '--measure' in sys.argv: measure(sys.argv[2:6], sys.argv[6])
    else: run(dict(updates=rows), args(__doc__), title='Training in several processes', about=ABOUT)
