"""Copy the small committed set, `reports/showcase/`, from a finished run, and write the front page anew

    python site/showcase.py [SUBJECT] [FIGURE ...]     without figures all of 3_steering and 4_tokens, and of sweeps (`sweep_SUBJECT`)
"""
import shutil, subprocess, sys
from pathlib import Path

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]
LIMIT = 3e6 # bytes: every clone carries it

def main(subject='nano_vla', *figures):
    base, dest = ROOT/'reports', ROOT/'reports/showcase'
    run = base/'3_steering'/subject
    if not (run/'metrics.json').exists(): sys.exit(f'{run}: no metrics.json; run the phases with `make run`, then come back')
    svgs = [p for phase in ('3_steering', '4_tokens') for p in sorted((base/phase/subject).glob('*.svg')) if not figures or p.stem in figures]
    sweeps = {name: p for p in ROOT.glob('sweeps/*/compare.svg') if (name := f'sweep_{p.parent.name}') in figures or not figures}
    if missing := set(figures)-{p.stem for p in svgs}-set(sweeps): sys.exit(f"{', '.join(missing)}: no such figure in the run of {subject}")
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(parents=True)
    for p in (run/'metrics.json', *svgs, *run.glob('*.mp4'), *run.glob('*.png')): shutil.copy(p, dest)
    for name,p in sweeps.items(): shutil.copy(p, dest/f'{name}.svg')
    if (tokens := base/'4_tokens'/subject/'metrics.json').exists(): shutil.copy(tokens, dest/'tokens.json')
    size = sum(p.stat().st_size for p in dest.iterdir())
    if size>LIMIT: sys.exit(f'{dest}: {size/1e6:.1f} MB, at most {LIMIT/1e6:.0f} MB; name the figures to keep, or make the videos smaller')
    for cmd in (['save.py', 'nbs/index.ipynb'], ['build.py', '--readme-only']): subprocess.run([sys.executable, HERE/cmd[0], *cmd[1:]], cwd=ROOT, check=True)
    print(f'showcase: {len(list(dest.iterdir()))} files, {size/1e3:.0f} kB; README.md and nbs/index.ipynb are written anew')

if __name__=='__main__': main(*sys.argv[1:])
