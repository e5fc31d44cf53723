"""The phases as a DAG: one notebook per phase, one executed copy per subject, one report.

`make run` calls this. Alone: `snakemake --profile profiles/local`, with `--config out=FOLDER params=params/smoke.yaml`
to make everything elsewhere and smaller.
"""
import re, sys
from pathlib import Path
from steerlens.core import SteerlensError, need
from steerlens.params import resolve
from steerlens.planning import job, read_plans
from steerlens.running import READS, READS_TOO, plan_sweep, wanted

PHASES = sorted((p.stem for p in Path("sae_notebooks").glob("[0-9]*_*.ipynb")), key=lambda p: int(p.split("_")[0]))
NUMBERED = {p.split("_")[0]: p for p in PHASES}
ASKED = {"nano_vla": "123457", "nano_lm": "123457", "set_model": "12457"}
if "everything" in config:  # and what takes longer than `make run` may
    ASKED["walker"] = "1234567"
    ASKED["nano_lm"] += "89"
if "subjects" in config:  # others, through phases 1 and 2 or those named: --config subjects=smollm2 phases=123
    ASKED = {s: str(config.get("phases", 12)) for s in str(config["subjects"]).split(",")}
SUBJECTS = {s: [NUMBERED[n] for n in numbers if n in NUMBERED] for s, numbers in ASKED.items()}
BELOW = {"1": 30, "2": 40, "3": 60, "4": 70, "5": 50, "6": 93, "8": 87, "9": 85}  # it imports only the notebooks with a number below this

OUT = str(config.get("out", "."))
EXTRA = [str(config["params"])] if "params" in config else []
SWEEP, PLANS = None, {}

try:  # what is wrong with the parameters is said in one line, before any work
    need(not set("{}") & set(OUT), f"out={OUT}", "braces, which Snakemake fills", "a folder without them")
    for subject, phases in SUBJECTS.items():
        for phase in phases:
            resolve(phase, subject, [f"out={OUT}"], EXTRA)
    if "plan" in config:  # from `steerlens plan SUBJECT --json`, for a cluster: files, with commas between them
        PLANS = read_plans(str(config["plan"]).split(","))
    if "sweep" in config:
        SWEEP = plan_sweep(str(config["sweep"]), OUT, EXTRA)
except SteerlensError as e:
    sys.exit(f"steerlens: {e}")


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


def wants(phase, what, unplanned):
    "Memory or minutes of a phase's job: with a margin over what was planned, and more where that was too little"
    return lambda w, attempt: attempt * job(PLANS, phase, w.subject).get(what, unplanned)


def before(number):
    "What the phases that a phase reads have left"
    def runs(w):
        too = [n for n in READS_TOO.get(number, "") if n in ASKED[w.subject]]
        return [reports(f"{NUMBERED[n]}/{w.subject}/metrics.json") for n in [*READS.get(number, ""), *too] if n in NUMBERED]
    return runs


def weights(w):
    return sorted(str(p) for p in Path(f"weights/{w.subject}").rglob("*") if p.is_file())


rule report:
    input:
        runs=[reports(f"{phase}/{subject}/metrics.json") for subject, phases in SUBJECTS.items() for phase in phases],
        library=list(library(98)),
    output: reports("index.html")
    params: out=OUT
    localrule: True  # a page, in seconds
    shell: "steerlens report --out {params.out:q}"


RANKS = int(config.get("ranks", 1))  # processes that share phase 1's harvest, --config ranks=4; it puts their shards together


def share(rank):
    return reports(f"{NUMBERED['1']}/.{{subject}}.share_{rank}_of_{RANKS}")


rule share:
    input:
        asked(NUMBERED["1"]),
        weights,
        library=list(library(BELOW["1"])),
    output: touch(share("{rank}"))
    params:
        out=f"out={OUT}",
        extra=[a for p in EXTRA for a in ("--params", p)],
        ranks=RANKS,
    threads: 2
    resources:
        mem_mb=wants(NUMBERED["1"], "mem_mb", 16000),
        runtime=wants(NUMBERED["1"], "runtime", 240),
        gpu=lambda w: job(PLANS, NUMBERED["1"], w.subject).get("gpu", 0),
    shell: "steerlens acts share {wildcards.subject} {wildcards.rank} {params.ranks} {params.out:q} {params.extra:q}"


PROCESSES = int(config.get("processes", 1))  # that share each update of phase 2's training, --config processes=4
TRAINED = reports(f"{NUMBERED['2']}/.{{subject}}.trained_by_{PROCESSES}")


rule train:
    input:
        reports(f"{NUMBERED['1']}/{{subject}}/metrics.json"),
        asked(NUMBERED["2"]),
        weights,
        library=list(library(BELOW["2"])),
    output: touch(TRAINED)
    params:
        out=f"out={OUT}",
        extra=[a for p in EXTRA for a in ("--params", p)],
        processes=PROCESSES,
    threads: max(2, PROCESSES)
    resources:
        mem_mb=lambda w, attempt: PROCESSES * wants(NUMBERED["2"], "mem_mb", 16000)(w, attempt),
        runtime=wants(NUMBERED["2"], "runtime", 240),
        gpu=lambda w: PROCESSES * job(PLANS, NUMBERED["2"], w.subject).get("gpu", 0),
    shell: "steerlens sae train {wildcards.subject} {params.out:q} {params.extra:q} --processes {params.processes}"


for number, phase in NUMBERED.items():
    rule:
        name: f"phase_{phase}"
        input:
            *[share(rank) for rank in range(RANKS) if RANKS > 1 and number == "1"],
            *[TRAINED] * (PROCESSES > 1 and number == "2"),
            before(number),
            asked(phase),
            weights,
            notebook=f"sae_notebooks/{phase}.ipynb",
            library=list(library(BELOW.get(number, 80))),
        output: reports(f"{phase}/{{subject}}/metrics.json")
        log: notebook=reports(f"{phase}/{{subject}}.ipynb")
        params:
            phase=phase,
            out=f"out={OUT}",
            extra=[a for p in EXTRA for a in ("--params", p)],
        threads: 2
        resources:
            mem_mb=wants(phase, "mem_mb", 16000),
            runtime=wants(phase, "runtime", 240),
            gpu=lambda w, phase=phase: job(PLANS, phase, w.subject).get("gpu", 0),
        shell: "steerlens run {params.phase} {wildcards.subject} {params.out:q} {params.extra:q}"


# A sweep: phase 2 for each combination of the values listed in a file, `--config sweep=params/sweeps/nano_lm.yaml`
if SWEEP:
    SWEPT, FOLDER = SWEEP["subject"], Path(OUT) / "sweeps" / SWEEP["subject"]

    def values_of(variant):
        return str((FOLDER / variant / "params.yaml").resolve())

    rule sweep:
        input:
            runs=[str(FOLDER / v / "reports/2_sae" / SWEPT / "metrics.json") for v in SWEEP["variants"]],
            listed=str(FOLDER / "sweep.json"),
        output: str(FOLDER / "compare.svg")
        params: folder=str(FOLDER)
        localrule: True
        shell: "steerlens compare {params.folder:q}"

    rule variant:
        input:
            reports(f"1_residuals/{SWEPT}/metrics.json"),
            notebook="sae_notebooks/2_sae.ipynb",
            values=str(FOLDER / "{variant}/params.yaml"),
            asked=lambda w: str(wanted("2_sae", SWEPT, str(FOLDER / w.variant), [*EXTRA, values_of(w.variant)])),
            library=list(library(BELOW["2"])),
        output: str(FOLDER / "{variant}/reports/2_sae/{subject}/metrics.json")
        params:
            out=lambda w: f"out={FOLDER / w.variant}",
            extra=[a for p in EXTRA for a in ("--params", p)],
        threads: 2
        resources:
            mem_mb=wants("2_sae", "mem_mb", 16000),
            runtime=wants("2_sae", "runtime", 240),
            gpu=lambda w: job(PLANS, "2_sae", w.subject).get("gpu", 0),
        shell: "steerlens run 2_sae {wildcards.subject} {params.out:q} {params.extra:q} --params {input.values:q}"
