# Two commands to begin with: `make demo` and `make test`. `make help` lists them all.
# Each makes .venv at its first call; the stamp file keeps the second call from installing again.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:
JOBS ?= 2
DIR ?= .
LAB ?=
BIN := .venv/bin
STAMP := .venv/installed
EXPORT := .venv/export
unexport PYTHONDONTWRITEBYTECODE  # what is imported is compiled once, and not at each start
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

# The first Python ≥ 3.11 that answers; `make PYTHON=… demo` names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# uv does not read pip's settings: hand it the folder and the indexes that pip would use.
pip_setting = $(shell $(PYTHON) -m pip config get global.$(1) 2>/dev/null || $(PYTHON) -m pip config get :env:.$(1) 2>/dev/null)
uv_options = $(foreach url,$(call pip_setting,index-url),--default-index $(url)) \
	$(foreach url,$(call pip_setting,extra-index-url),--index $(url)) \
	$(foreach folder,$(call pip_setting,find-links),--find-links $(folder)) --index-strategy unsafe-best-match

.PHONY: help demo test test-export lab lint notebooks studies bench bench-data bench-train soak base clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

# The environment is Python's own, or uv's where Python has no ensurepip. uv installs in a fraction of pip's time; what it
# cannot do here, pip does.
$(STAMP): settings.ini setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || { set -ex; \
		if command -v uv >/dev/null && ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
			uv venv --quiet --python "$$(command -v $(PYTHON))" .venv; \
		else $(PYTHON) -m venv .venv; fi; }
	@{ command -v uv >/dev/null && ( set -x; \
		uv pip install --quiet --python $(BIN)/python $(uv_options) --editable '.[dev]' ); } || ( set -x; \
		$(BIN)/python -m pip install --quiet --editable '.[dev]' )
	@touch $(STAMP)

demo: $(STAMP)  ## the main job from raw file to exported model; about four minutes, results in runs/demo
	$(BIN)/finetune demo

test: $(STAMP)  ## everything: house rules, library, kit, all notebooks; ends with a table of where the minutes went
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests nbs --nbval-lax --nbval-current-env -p tests.kernels \
		--numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --quiet --minutes

# The export environment stands on .venv and adds the runtimes; llama.cpp is compiled, which takes minutes.
$(EXPORT)/installed: $(STAMP)
	$(BIN)/python -m venv $(EXPORT)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(EXPORT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	$(EXPORT)/bin/python -m pip install --quiet --editable '.[gguf,onnx,lm-eval,similarity]'
	@touch $@

test-export: $(EXPORT)/installed  ## every export in its own runtime (llama.cpp, ONNX Runtime, lm_eval); runs/export/report.json
	OMP_NUM_THREADS=1 $(EXPORT)/bin/python -m pytest tests/export --quiet

lint: $(STAMP)  ## ruff, layers, export, README, notebooks' form: what needs no training
	$(BIN)/ruff check
	$(BIN)/python -m pytest tests/house --quiet

lab: $(STAMP)  ## JupyterLab with the notebooks open; a learner's folder: make lab DIR=../my-course
	cd $(DIR) && .venv/bin/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) \
		--LabApp.default_url=/lab/tree/nbs/00_start.ipynb $(LAB)

notebooks: $(STAMP)  ## run all notebooks, store them in their normal form, export the library
	$(BIN)/nbdev-export
	$(BIN)/python -m milestones.notebooks
	$(BIN)/nbdev-export

studies: $(STAMP)  ## measure again what data/studies holds, and make both READMEs' tables from it; about two hours
	cd data && ../$(BIN)/python -m make.measure && ../$(BIN)/python -m make.adapters && ../$(BIN)/python -m make.bits
	cd data && ../$(BIN)/python -m make.memory && ../$(BIN)/python -m make.readme
	$(BIN)/python -m milestones.notebooks --times
	$(BIN)/finetune demo
	$(BIN)/python -m milestones.readme --report runs/demo/report.json

bench: $(STAMP)  ## speed, as ratios of two ways in one run, and what moved since the stored reports
	$(BIN)/python tests/benchmark/speed.py
	$(BIN)/python tests/benchmark/reports.py

bench-data: $(STAMP)  ## preparation of data against TRL's, and the memory of a million rows; about ten minutes
	$(BIN)/python tests/benchmark/data.py

bench-train: $(STAMP)  ## training against a bare loop, Trainer and SFTTrainer, in real tokens a second; a few minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmark/train.py

soak: $(STAMP)  ## training killed a hundred times at random moments and resumed; what differs is in runs/soak/report.json
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmark/soak.py

base: $(STAMP)  ## make the base model, its data and its adapters again, from nothing; at most 90 minutes on two cores
	cd data && ../$(BIN)/python -m make.files && ../$(BIN)/python -m make.pretrain && ../$(BIN)/python -m make.tuned

clean:  ## remove .venv, caches, builds and runs/demo
	rm -rf .venv build dist *.egg-info runs/demo .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
