"What the benchmarks share: timing, memory, the machine's name, and one table of ours beside a peer"
import argparse, ctypes, gc, os, platform, resource, sys, tempfile, threading, time
from pathlib import Path


def args(doc):
    "`--quick`, `--json FILE` and `--only`, for a benchmark with this docstring"
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--quick', action='store_true', help='smaller cases, under 3 minutes')
    a.add_argument('--json', metavar='FILE', help='also write the rows and the machine there')
    a.add_argument('--only', metavar='WORDS', default='', help='only these parts, such as write,read')
    return a.parse_args()


def timed(f):
    "What `f` returns, and its seconds"
    start = time.perf_counter()
    done = f()
    return done, time.perf_counter()-start


def rate(f, n, repeat=3):
    "Best rate of `repeat` runs: machines are noisy in one direction only"
    return max(n/timed(f)[1] for _ in range(repeat))


def race(n, ours, *peers, repeat=3, before=lambda: None):
    """Best rates of ours and of each peer, taking turns, then the memory ours took in MB, in a run of its own

    `n` is the units of work, or None for what a run returns; `before` comes before each run, untimed.
    """
    best = [0.]*(1+len(peers))
    for _ in range(repeat):
        for i,f in enumerate((ours, *peers)):
            before()
            done,seconds = timed(f)
            best[i] = max(best[i], (n or done)/seconds)
    before()
    with Peak() as peak: ours()
    return *best, peak.mb


def resident():
    "Memory of this process, in MB"
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*resource.getpagesize()/1e6


class Peak:
    "Resident memory above what it was, at its highest inside a `with` block, in MB"
    def __enter__(self):
        gc.collect()
        getattr(ctypes.CDLL(None), 'malloc_trim', lambda _: 0)(0) # what was freed is not there to be used again
        self.before = resident()
        self.mb = 0.
        self.on = True
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def look(self): self.mb = max(self.mb, resident()-self.before)

    def watch(self):
        while self.on:
            self.look()
            time.sleep(.01)

    def __exit__(self, *args):
        self.on = False
        self.thread.join()
        self.look()


def processor():
    "The processor's name"
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    named = [l.split(': ')[1].strip() for l in lines if l.startswith('model name')]
    return named[0] if named else platform.processor()


def machine(**more):
    "What a table has to say about where it was made"
    import torch
    gpu = dict(gpu=torch.cuda.get_device_name()) if torch.cuda.is_available() else {}
    versions = dict(torch=torch.__version__, python=platform.python_version())
    return dict(processor=processor(), cores=len(os.sched_getaffinity(0))) | gpu | versions | more


def run(parts, a, **about):
    "Those parts (name -> function of a folder, giving rows) that were asked for, and their table"
    asked = a.only.split(',') if a.only else [*parts]
    rows = []
    with tempfile.TemporaryDirectory(prefix='.bench-', dir='.') as tmp:
        for name in [p for p in parts if p in asked]:
            made,seconds = timed(lambda: parts[name](Path(tmp).resolve()))
            rows += made
            print(f'{name}: {seconds:.0f} s', file=sys.stderr)
    finish(rows, a, **about)


def printed(r, width):
    "One row of the table"
    numbers = f"{r['ours']:12,.4g}{r['peer']:12,.4g}{r['ratio']:8.2f}{r['memory_mb']:8,.0f}"
    return f"{r['name']:{width}}{numbers}  {r['unit']:12} {r['peer_name']}"


def finish(rows, a, title, about, **more):
    "Print the table, and write it where `--json` says"
    from steerlens.core import write_json
    for r in rows: r['ratio'] = r['ours']/r['peer']
    width = max(len(r['name']) for r in rows)+2
    print(f"{'':{width}}{'ours':>12}{'peer':>12}{'ratio':>8}{'MB':>8}  unit         peer")
    for r in rows: print(printed(r, width))
    where = machine(quick=a.quick)
    print(where)
    if a.json: write_json(a.json, dict(rows=rows, machine=where, title=title, about=about, **more))
