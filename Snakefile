"""The phases as a DAG: one notebook per phase, one executed copy per subject, one report.

`make run` calls this. Alone: `snakemake --profile profiles/local`, with `--config out=FOLDER params=params/smoke.yaml`
to make everything elsewhere and smaller.
"""
import hashlib, json, re
from itertools import product
from pathlib import Path
from steerlens.core import SteerlensError, write_json
from steerlens.params import read_yaml, resolve, wanted

PHASES = sorted((p.stem for p in Path("sae_notebooks").glob("[0-9]*_*.ipynb")), key=lambda p: int(p.split("_")[0]))
SUBJECTS = {"nano_vla": PHASES, "nano_lm": PHASES[:2]}  # steering is for policies so far
if "subjects" in config:  # others, through the first two phases: --config subjects=smollm2
    SUBJECTS = {s: PHASES[:2] for s in str(config["subjects"]).split(",")}
BELOW = {"1": 30, "2": 40, "3": 60, "4": 70}  # a phase imports only the notebooks with a number below this

OUT = str(config.get("out", "."))
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


def asked(phase):
    "A file that is newer than a run with other parameters than those asked for"
    return lambda w: str(wanted(phase, w.subject, OUT, EXTRA))


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
            asked(phase),
            weights,
            notebook=f"sae_notebooks/{phase}.ipynb",
            library=list(library(BELOW.get(phase.split("_")[0], 80))),
        output: reports(f"{phase}/{{subject}}/metrics.json")
        log: notebook=reports(f"{phase}/{{subject}}.ipynb")
        params:
            phase=phase,
            out=f"out={OUT}",
            extra=[a for p in EXTRA for a in ("--params", p)],
        threads: 2
        shell: "steerlens run {params.phase} {wildcards.subject} {params.out:q} {params.extra:q}"


# A sweep: phase 2 for each combination of the values listed in a file, `--config sweep=params/sweeps/nano_lm.yaml`.
# A variant's folder is named by the hash of its values, which reach the phase in a file and not through the shell.
if "sweep" in config:
    ASKED = read_yaml(config["sweep"], Path(config["sweep"]).read_text())
    SWEPT = ASKED.pop("subject")
    LISTS = {k: v for k, v in ASKED.pop("sweep", {}).items()}
    FOLDER = Path(OUT) / "sweeps" / SWEPT
    VARIANTS = {}
    for values in product(*LISTS.values()):
        variant = dict(zip(LISTS, values))
        text = json.dumps(ASKED | variant, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:10]
        file = FOLDER / name / "params.yaml"
        if not file.exists(): write_json(file, {"2_sae": ASKED | variant})  # JSON is YAML
        resolve("2_sae", SWEPT, [], [*EXTRA, str(file.resolve())])  # refused here, before any work
        VARIANTS[name] = variant
    LISTED = FOLDER / "sweep.json"
    content = dict(phase="2_sae", subject=SWEPT, swept=list(LISTS), fixed=ASKED, variants=VARIANTS)
    if not LISTED.exists() or json.loads(LISTED.read_text()) != content: write_json(LISTED, content)

    rule sweep:
        input:
            runs=[str(FOLDER / v / "reports/2_sae" / SWEPT / "metrics.json") for v in VARIANTS],
            listed=str(LISTED),
        output: str(FOLDER / "compare.svg")
        params: folder=str(FOLDER)
        shell: "steerlens compare {params.folder:q}"

    rule variant:
        input:
            reports(f"1_residuals/{SWEPT}/metrics.json"),
            notebook="sae_notebooks/2_sae.ipynb",
            values=str(FOLDER / "{variant}/params.yaml"),
            library=list(library(BELOW["2"])),
        output: str(FOLDER / "{variant}/reports/2_sae/{subject}/metrics.json")
        params:
            out=lambda w: f"out={FOLDER / w.variant}",
            harvest=f"harvest={OUT}",
            extra=[a for p in EXTRA for a in ("--params", p)],
        threads: 2
        shell: "steerlens run 2_sae {wildcards.subject} {params.out:q} {params.harvest:q} {params.extra:q} --params {input.values:q}"
