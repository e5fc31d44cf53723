"""Run notebooks by nbdev's own rules and keep their outputs, so that the docs show real results

    python site/save.py                      every notebook of nbs/
    python site/save.py nbs/02_plot.ipynb    only these

nbdev 2 tests notebooks but can't save what they print. The cells that `nbdev_test` skips keep the outputs they had.
What changes from run to run (counts, memory addresses, temporary folders, warnings and progress bars) is taken out.
"""
import os, re, sys
from multiprocessing import get_context
from pathlib import Path
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor

TMP = re.compile(r'/tmp/[\w./-]*?tmp\w{8}')

def skipped(cell, flags):
    "Is this a cell that `nbdev_test` wouldn't run?"
    d = getattr(cell, 'directives_', None) or {}
    if cell.cell_type!='code' or 'nbdev_export(' in cell.source: return True
    return d.get('eval:', [''])[0].lower()=='false' or bool(flags & d.keys())

def steady(outputs):
    "`outputs` without what differs between two runs"
    sub = lambda x: TMP.sub('/tmp/x', x) if isinstance(x, str) else [TMP.sub('/tmp/x', o) for o in x]
    keep = [o for o in outputs if o.get('name')!='stderr' and (o.get('data') or o.get('text'))]
    for o in keep:
        if 'text' in o: o['text'] = sub(o['text'])
        for k in o.get('data', {}):
            if k.startswith('text/'): o['data'][k] = sub(o['data'][k])
    return keep

def run(path):
    "Run the notebook at `path` in its folder, write its outputs into it, return their size in kB"
    cfg, path = get_config(), Path(path).resolve()
    flags, keys = set(cfg.tst_flags.split()), cfg.get('allowed_cell_metadata_keys', '').split()
    os.environ['IN_TEST'] = '1'
    sys.path.insert(0, str(cfg.config_path))
    os.chdir(path.parent)
    nb, kept = NBProcessor(path, process=True).nb, read_nb(path)
    skip = lambda c: skipped(c, flags)
    shell = CaptureShell(path)
    try: shell.run_all(nb, exc_stop=True, preproc=skip)
    except Exception: sys.exit(f'{path}: not saved\n{shell.prettytb(fname=path)}')
    for a,b in zip(kept.cells, nb.cells):
        if not skip(b): a.outputs = steady(b.get('outputs', []))
    clean_nb(kept, allowed_cell_metadata_keys=keys)
    write_nb(kept, path)
    print(f"{path.name}: {sum(len(str(c.get('outputs', ''))) for c in kept.cells)/1e3:.0f} kB of outputs", flush=True)

if __name__=='__main__':
    paths = sys.argv[1:] or sorted(map(str, get_config().nbs_path.rglob('[!._]*.ipynb')))
    failed = []
    for p in paths: # a fresh process each: seeds, settings and modules don't leak into the next
        proc = get_context('spawn').Process(target=run, args=(p,))
        proc.start(); proc.join()
        if proc.exitcode: failed.append(p)
    if failed: sys.exit(f"site/save.py: {', '.join(failed)} failed and kept the old outputs")
