"""What `steerlens plan` says of phases 1 and 2, beside what they then take.

The forecast and the run are made one after the other on the same machine, into the same disk. A number is met where the
forecast is within a quarter of what was measured.
"""
import os, shutil, sys, tempfile
from pathlib import Path
from steerlens.planning import plan, watched
from table import args, finish

SUBJECT,PHASES,BAR = 'nano_vla', ['1_residuals', '2_sae'], .25
NAMES = dict(seconds='s', memory_mb='MB', disk_mb='MB')


def measured(phase, out, files):
    "A real run, by the command line"
    command = [sys.executable, '-c', 'from steerlens.cli import main; main()', 'run', phase, SUBJECT, f'out={out}']
    run = watched([*command, *(a for f in files for a in ('--params', f))], out)
    if run.failed: sys.exit(f'{phase}: {run.failed}')
    return run


def row(phase, name, said, got):
    "A forecast beside what was measured"
    off = said[name]/got-1
    told = f'{phase}, {name.removesuffix("_mb")}: {said["told"][name]}'
    return dict(name=told, ours=said[name], peer=got, peer_name='measured', unit=NAMES[name], memory_mb=0., bar=BAR,
                met=abs(off) <= BAR)


def compared(out, files):
    "A row for each number of each phase"
    p,rows = plan(SUBJECT, PHASES, str(out), files), []
    for phase in PHASES:
        run = measured(phase, out, files)
        rows += [row(phase, name, p['phases'][phase], getattr(run, name)) for name in NAMES]
    return rows


def main():
    a = args(__doc__)
    before = os.getloadavg()[0] # of other work: what it slows differs between the forecast and the run
    out = Path(tempfile.mkdtemp(prefix='.bench-', dir='.')).resolve()
    try: rows = compared(out, ['params/smoke.yaml'] if a.quick else [])
    finally: shutil.rmtree(out)
    print(f'{sum(r["met"] for r in rows)} of {len(rows)} forecasts within {BAR:.0%}')
    finish(rows, a, title='Plans of phases', about=' '.join(__doc__.split()), load=[before, os.getloadavg()[1]])


if __name__=='__main__': main()
