"""Copy the committed set, `reports/showcase/`, from finished runs, and write the front page anew

    python site/showcase.py [SUBJECT ...] [--reports FOLDER] [--to FOLDER]

Of each phase and subject: the executed notebook, its metrics, manifest, figures and films, as they are. What was not
run this time stays as it was. Without SUBJECT: all that were run.
"""
import argparse, shutil, subprocess, sys
from pathlib import Path

from steerlens.core import read_json

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]
NOTEBOOK, WHOLE = 1e6, 16e6 # bytes: every clone carries them
KEPT = ('metrics.json', 'manifest.json', 'params.json', '*.svg', '*.mp4', '*.png')


def finished(reports, names):
    "The folders of finished runs, `<reports>/<phase>/<subject>`, of all subjects or those named"
    done = [p.parent for p in sorted(reports.glob('[0-9]*_*/*/metrics.json'))]
    missing = sorted({*names}-{p.name for p in done})
    if missing: sys.exit(f"{reports}: no finished run of {', '.join(missing)}; run its phases")
    if not done: sys.exit(f'{reports}: no finished run; `make run` makes one')
    return [p for p in done if not names or p.name in names]


def by_hand(run):
    "The parameters in which a run differs from those of `make run`, unless they are those of `make everything`"
    from steerlens.running import changed
    (phase,subject),out = run.parts[-2:], run.parents[2].as_posix()
    return changed(phase, subject, out, [ROOT/'params/everything.yaml']) and changed(phase, subject, out)


def uncommitted(run):
    "Was a run made by code that no commit holds?"
    return read_json(run/'manifest.json')['git']['dirty']


def copy(run, to, sweeps):
    "One run: its notebook, and what it left beside it"
    notebook = run.with_suffix('.ipynb')
    if not notebook.exists(): sys.exit(f'{notebook}: missing; run the phase again')
    size = notebook.stat().st_size
    if size>NOTEBOOK: sys.exit(f'{notebook}: {size/1e6:.1f} MB; expected at most 1 MB; draw fewer points')
    folder = to/run.parent.name/run.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(notebook, folder.with_suffix('.ipynb'))
    for p in [p for pattern in KEPT for p in run.glob(pattern)]: shutil.copy(p, folder)
    compared = sweeps/run.name/'compare.svg'
    if run.parent.name=='2_sae' and compared.exists(): shutil.copy(compared, folder/'sweep.svg')


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('subjects', nargs='*', metavar='SUBJECT', help='whose runs; all that are there by default')
    a.add_argument('--reports', type=Path, default=ROOT/'reports', help='where the runs are')
    a.add_argument('--to', type=Path, default=ROOT/'reports/showcase', help='where the copies go')
    a = a.parse_args()
    ready,committed = finished(a.reports, a.subjects), a.to==ROOT/'reports/showcase'
    for run in ready if committed else []:
        if found := by_hand(run): sys.exit(f"{run}: not the published {', '.join(found)}; run it again with `make run`")
        if uncommitted(run): sys.exit(f'{run}: made with local changes; commit them and run it again')
    for run in ready: copy(run, a.to, a.reports.parent/'sweeps')
    files = [p for p in a.to.rglob('*') if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    if size>WHOLE: sys.exit(f'{a.to}: {size/1e6:.1f} MB; expected at most {WHOLE/1e6:.0f} MB; make the videos smaller')
    print(f'showcase: {len(files)} files, {size/1e3:.0f} kB')
    if not committed: return
    for cmd in (['save.py', 'nbs/index.ipynb'], ['build.py', '--readme-only']):
        subprocess.run([sys.executable, HERE/cmd[0], *cmd[1:]], cwd=ROOT, check=True)
    print('README.md and nbs/index.ipynb are written anew')


if __name__=='__main__': main()
