"""The phases as a DAG: one notebook per phase, one executed copy per subject, one report.

`make run` calls this. Alone: `snakemake --profile profiles/local`, with `--config out=FOLDER params=params/smoke.yaml`
to make everything elsewhere and smaller.
"""
import re, shlex
from itertools import product
from pathlib import Path
import yaml

PHASES = sorted((p.stem for p in Path("sae_notebooks").glob("[0-9]*_*.ipynb")), key=lambda p: int(p.split("_")[0]))
SUBJECTS = {"nano_vla": PHASES, "nano_lm": PHASES[:2]}  # steering is for policies so far
BELOW = {"1": 30, "2": 40, "3": 60, "4": 70}  # a phase imports only the notebooks with a number below this

OUT = config.get("out", ".")
EXTRA = [config["params"]] if "params" in config else []


def reports(name):
    "A path in reports/, as a string without a leading ./"
    return str(Path(OUT) / "reports" / name)


def library(below):
    "The modules exported by the notebooks numbered below `below`: when one changes, what was made with it is old"
    for nb in sorted(Path("nbs").glob("[0-9]*.ipynb")):
        if int(nb.name.split("_")[0]) < below:
            for name in re.findall(r'"#\| *default_exp ([\w.]+)', nb.read_text()):
                yield f"steerlens/{name.replace('.', '/')}.py"


def settings(phase):
    "The files that set parameters of a phase, for a subject"
    own = Path(f"params/phases/{phase}.yaml")
    return lambda w: [str(p) for p in (own, Path(f"params/subjects/{w.subject}.yaml"), *EXTRA) if Path(p).exists()]


def weights(w):
    return sorted(str(p) for p in Path(f"weights/{w.subject}").glob("*") if p.is_file())


rule report:
    input:
        runs=[reports(f"{phase}/{subject}/metrics.json") for subject, phases in SUBJECTS.items() for phase in phases],
        library=list(library(98)),
    output: reports("index.html")
    params: out=OUT
    shell: "steerlens report --out {params.out:q}"


for before, phase in zip([None] + PHASES, PHASES):
    rule:
        name: f"phase_{phase}"
        input:
            *[reports(f"{before}/{{subject}}/metrics.json")] * bool(before),
            settings(phase),
            weights,
            notebook=f"sae_notebooks/{phase}.ipynb",
            library=list(library(BELOW.get(phase.split("_")[0], 80))),
        output: reports(f"{phase}/{{subject}}/metrics.json")
        log: notebook=reports(f"{phase}/{{subject}}.ipynb")
        params:
            phase=phase,
            out=OUT,
            extra=[f"--params {p}" for p in EXTRA],
        threads: 2
        shell: "steerlens run {params.phase} {wildcards.subject} out={params.out:q} {params.extra}"


# A sweep: phase 2 for each combination of the values listed in a file, `--config sweep=params/sweeps/nano_lm.yaml`
if "sweep" in config:
    ASKED = yaml.safe_load(Path(config["sweep"]).read_text())
    SWEPT = ASKED.pop("subject")
    FIXED = " ".join(shlex.quote(f"{k}={v}") for k, v in ASKED.items() if not isinstance(v, list))
    LISTS = {k: v for k, v in ASKED.items() if isinstance(v, list)}
    VARIANTS = [",".join(f"{k}={v}" for k, v in zip(LISTS, values)) for values in product(*LISTS.values())]
    FOLDER = Path(OUT) / "sweeps" / SWEPT

    rule sweep:
        input: [str(FOLDER / v / "reports/2_sae" / SWEPT / "metrics.json") for v in VARIANTS]
        output: str(FOLDER / "compare.svg")
        params: folder=str(FOLDER)
        shell: "steerlens compare {params.folder:q}"

    rule variant:
        input: reports(f"1_residuals/{SWEPT}/metrics.json"), settings("2_sae"), config["sweep"], library=list(library(BELOW["2"]))
        output: str(FOLDER / "{variant}/reports/2_sae/{subject}/metrics.json")
        params:
            out=lambda w: FOLDER / w.variant,
            harvest=OUT,
            values=lambda w: FIXED + " " + w.variant.replace(",", " "),
            extra=[f"--params {p}" for p in EXTRA],
        threads: 2
        shell: "steerlens run 2_sae {wildcards.subject} out={params.out:q} harvest={params.harvest:q} {params.values} {params.extra}"
