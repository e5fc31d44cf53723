"""Release notes, drafted from the changelog and the committed runs

    python site/release.py [--showcase FOLDER]    prints Markdown: read it, shorten it, publish it

What is new is the changelog's first section, as it stands. What the committed runs found is told by their own
`metrics.json`, and when, from which commit and with which packages they were made by their manifests: no number of that
part is written by hand.
"""
import argparse, re, sys
from pathlib import Path
from steerlens.core import SteerlensError
from steerlens.record import Run, run_named, said, spent

ROOT = Path(__file__).resolve().parents[1]


def section(text):
    "The changelog's first section: its title and its body"
    found = re.search(r'^## (.+?)\n(.*?)(?=^## |\Z)', text, re.M|re.S)
    if not found: sys.exit('CHANGELOG.md: no section; expected `## VERSION`')
    return found[1].strip(), found[2].strip()


def gates(run:Run):
    "How many of an autoencoder's gates are met, and which are not"
    rows = [(site, g) for site,gs in (run.metrics.get('gates') or {}).items() for g in gs]
    if not rows: return []
    failed = [(site, g) for site,g in rows if g['value'] is not None and not g['pass']]
    missed = [f"{g['name']} {g['bar']} at {site} ({g['value']:.3g})" for site,g in failed]
    n = sum(bool(g['pass']) for _,g in rows)
    return [f'{n} of {len(rows)} gates of its autoencoders are met', *[f"missed: {', '.join(missed)}"]*bool(missed)]


def explained(run:Run):
    "What an autoencoder keeps"
    return [f"{s['l0']:.0f} latents explain {s['explained_variance']:.1%} of the variance at {s['site']}"
            for s in run.metrics.get('sites') or [] if 'explained_variance' in s]


def line(run:Run):
    "A run in a line: what it found, and where to look"
    at = f'reports/showcase/{run.phase}/{run.subject}'
    told = said(run.metrics) or [*explained(run), *gates(run)] or [f'its answers are in [its notebook]({at}.ipynb)']
    day = spent(run)['ended'][:10]
    return f"- **{run.name}**: {'; '.join(t.rstrip('.') for t in told)}. [Numbers]({at}/metrics.json), {day}."


def made_with(runs):
    "Commits and packages of the runs, each said once"
    gits = [g for r in runs if (g := r.manifest.get('git') or {}).get('commit')]
    commits = sorted({g['commit'][:10]+' with local changes'*bool(g.get('dirty')) for g in gits})
    versions = {}
    for r in runs:
        for name,v in (r.manifest.get('packages') or {}).items(): versions.setdefault(name, set()).add(v)
    packages = ', '.join(f"{n} {' and '.join(sorted(vs))}" for n,vs in versions.items())
    return f"Commits: {', '.join(commits) or 'not recorded'}.\n\nPackages: {packages}."


def notes(changelog, showcase):
    "All of it, as Markdown"
    title,body = section(changelog.read_text(encoding='utf-8'))
    runs = [run_named(p.parent.resolve()) for p in sorted(showcase.glob('[0-9]*_*/*/metrics.json'))]
    if not runs: sys.exit(f'{showcase}: no finished run; `make showcase` copies them here')
    lines = [f'# steerlens {title}', body, '## What the committed runs found', '\n'.join(map(line, runs)),
             '## How they were made', made_with(runs),
             '`steerlens reproduce reports/showcase/PHASE/SUBJECT` makes one again and compares every number.']
    return '\n\n'.join(lines)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--showcase', type=Path, default=ROOT/'reports/showcase', help='the committed runs')
    try: print(notes(ROOT/'CHANGELOG.md', a.parse_args().showcase))
    except SteerlensError as e: sys.exit(f'release: {e}')


if __name__=='__main__': main()
