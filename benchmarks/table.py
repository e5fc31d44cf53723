"What the benchmarks share: timing, memory, the machine's name, and one table of ours beside a peer"
import argparse, ctypes, gc, os, platform, resource, sys, tempfile, threading, time
from pathlib import Path


def args(doc):
    "`--quick` and `--json FILE`, for a benchmark with this docstring"
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--quick', action='store_true', help='smaller cases, under 3 minutes')
    a.add_argument('--json', metavar='FILE', help='also write the rows and the machine there')
    a.add_argument('--only', metavar='WORDS', default='', help='only these parts, such as write,read')
    return a.parse_args()


def rate(f, n, repeat=3):
    "Best rate of `repeat` runs: machines are noisy in one direction only"
    best = 0.
    for _ in range(repeat):
        t = time.perf_counter(); f(); best = max(best, n/(time.perf_counter()-t))
    return best


def race(n, ours, *peers, repeat=3, before=lambda: None):
    "Best rates of ours and of each peer, taking turns, and the memory ours took in MB, in a run of its own; `before` each run, untimed; `n` units of work, or what a run returns"
    best = [0.]*(1+len(peers))
    for _ in range(repeat):
        for i,f in enumerate((ours, *peers)):
            before()
            t = time.perf_counter(); done = f(); t = time.perf_counter()-t
            best[i] = max(best[i], (n or done)/t)
    before()
    with Peak() as peak: ours()
    return *best, peak.mb


def resident(): # MB
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*resource.getpagesize()/1e6


class Peak:
    "Resident memory above what it was, at its highest inside a `with` block, in MB"
    def __enter__(self):
        gc.collect(); getattr(ctypes.CDLL(None), 'malloc_trim', lambda _: 0)(0) # what was freed is not there to be used again
        self.before,self.mb,self.on = resident(), 0., True
        self.thread = threading.Thread(target=self.watch, daemon=True); self.thread.start()
        return self
    def watch(self):
        while self.on: self.mb = max(self.mb, resident()-self.before); time.sleep(.01)
    def __exit__(self, *args): self.on = False; self.thread.join(); self.mb = max(self.mb, resident()-self.before)


def machine(**more):
    import torch
    cpu = next((l.split(': ')[1].strip() for l in Path('/proc/cpuinfo').read_text().splitlines() if l.startswith('model name')), platform.processor())
    gpu = dict(gpu=torch.cuda.get_device_name()) if torch.cuda.is_available() else {}
    return dict(processor=cpu, cores=len(os.sched_getaffinity(0)), **gpu, torch=torch.__version__, python=platform.python_version(), **more)


def run(parts, a, **about):
    "Those parts (name -> function of a folder, giving rows) that were asked for, and their table"
    with tempfile.TemporaryDirectory(prefix='.bench-', dir='.') as tmp:
        rows = []
        for name,part in parts.items():
            if name not in (a.only or name).split(','): continue
            t = time.perf_counter()
            rows += part(Path(tmp).resolve())
            print(f'{name}: {time.perf_counter()-t:.0f} s', file=sys.stderr)
    finish(rows, a, **about)


def finish(rows, a, **about):
    "Print the table, and write it where `--json` says"
    from steerlens.core import write_json
    for r in rows: r['ratio'] = r['ours']/r['peer']
    w = max(len(r['name']) for r in rows)+2
    print(f"{'':{w}}{'ours':>12}{'peer':>12}{'ratio':>8}{'MB':>8}  unit         peer")
    for r in rows: print(f"{r['name']:{w}}{r['ours']:12,.4g}{r['peer']:12,.4g}{r['ratio']:8.2f}{r['memory_mb']:8,.0f}  {r['unit']:12} {r['peer_name']}")
    m = machine(quick=a.quick)
    print(m)
    if a.json: write_json(a.json, dict(rows=rows, machine=m, **about))
