# Everything a visitor or a contributor types. A fresh machine needs Python 3.11 or newer and make.

PYTHON ?= python3
DATA ?= ../shared/data
VENV := .venv
BIN := $(VENV)/bin
export PLANNER_DATA ?= $(DATA)
# Commands are run hundreds of times here: an environment that keeps no bytecode would compile them every time.
export PYTHONDONTWRITEBYTECODE :=
# Matrices here are small, so threads of BLAS would mostly wait for each other.
export OPENBLAS_NUM_THREADS ?= 1

# As many tests at a time as there are cores; each process holds half a GB before its first test.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2); echo $$((cores < 8 ? cores : 8)))

# Prerequisites of an installation; the stamps make a second run start at once.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_FIT := $(VENV)/.installed-fit
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test test-long lint types contracts pytest format serve fit collectives models own-timings accuracy unseen trials
.PHONY: text-models kernels-unseen collectives-unseen expert-plans serving-report dataflow-report bench search-report docs constraints clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

run: $(INSTALLED) ## Install, then print the ranked plans for Llama-2-13B on 8 x A100-80GB
	@$(BIN)/planner plan --model llama-2-13b --gpus 8xA100-80GB

test: $(INSTALLED_DEV) lint types contracts pytest ## Install, then lint, types, layer contracts and tests

lint: $(INSTALLED_DEV) ## ruff format and ruff check
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(INSTALLED_DEV) ## mypy, strict
	$(BIN)/mypy --num-workers 2
	$(BIN)/mypy tests/contract/typed_client.py

contracts: $(INSTALLED_DEV) ## import-linter: the layers of the house
	$(BIN)/lint-imports

pytest: $(INSTALLED_DEV) ## The tests alone, without the longest
	$(BIN)/pytest -q -n $(WORKERS) -m "not long" $(PYTEST_FLAGS)

test-long: $(INSTALLED_DEV) ## The longest tests: whole pages, refits, exhaustive searches, speed
	$(BIN)/pytest -q -n $(WORKERS) -m long $(PYTEST_FLAGS)

format: $(INSTALLED_DEV) ## Rewrite the code as ruff formats it
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

serve: $(INSTALLED) ## The REST service on http://127.0.0.1:8000/docs
	$(BIN)/planner serve

fit: $(INSTALLED_FIT) ## Fit kernel, link and stack parameters again on the measurements under DATA
	$(BIN)/python -m costmodels.calibration.kernel_fit --data $(DATA) --out profiles/data/fits
	$(MAKE) collectives
	$(BIN)/python -m planner.validate.refit --data $(DATA)/endtoend --out profiles/data/fits/stacks.json
	$(BIN)/python -m planner.validate.memory_fit --data $(DATA)/endtoend --out profiles/data/fits/stack_memory.json
	$(BIN)/python -m planner.validate.dataflow.fit --data $(DATA)/rlhf --out profiles/data/fits/dataflow.json

collectives: $(INSTALLED_FIT) ## Fit collectives again on the timings under DATA; rewrite docs/collectives.md
	$(BIN)/python -m costmodels.calibration.collective_report --data $(DATA) --out profiles/data/fits --page docs/collectives.md
	$(BIN)/python -m costmodels.calibration.engine_reduce_fit --data $(DATA) --out profiles/data/fits/engine_reduce.json

models: $(INSTALLED_FIT) ## Build the learned kernel models again from the timings under DATA; rewrite docs/kernels.md
	$(BIN)/python -m costmodels.calibration.kernel_models --data $(DATA) --out profiles/data/models_learned
	$(BIN)/python -m costmodels.calibration.kernel_page --out docs/kernels.md

own-timings: $(INSTALLED) ## Price the timings in profiles/data; rewrite docs/own-timings.md
	$(BIN)/python -m planner.score.own_page --out docs/own-timings.md

accuracy: $(INSTALLED) ## Rewrite docs/accuracy.md from the published runs under DATA
	$(BIN)/python -m planner.validate.accuracy --data $(DATA)/endtoend --out docs/accuracy.md
	@sed -n '/^## Result/,/^## Step/p' docs/accuracy.md | sed '$$d'

unseen: $(INSTALLED) ## Price published runs that no fit has read; rewrite the width publishers tell, and docs/unseen.md
	$(BIN)/python -m planner.validate.unseen.publishers --out profiles/data/fits/publishers.json
	$(BIN)/python -m planner.validate.unseen.page --out docs/unseen.md

kernels-unseen: $(INSTALLED) ## Price published timings of kernels that no fit has read; rewrite docs/kernels-unseen.md
	$(BIN)/python -m planner.score.kernel_blind --out docs/kernels-unseen.md

collectives-unseen: $(INSTALLED) ## Price published logs of collectives, of which half no fit has read; rewrite docs/collectives-unseen.md
	$(BIN)/python -m planner.validate.collective_page --out docs/collectives-unseen.md

expert-plans: $(INSTALLED) ## Price the plans of NVIDIA's own recipes beside the best found; rewrite docs/expert-plans.md
	$(BIN)/python -m planner.validate.experts.page --out docs/expert-plans.md

serving-report: $(INSTALLED) ## Price published measurements of serving; rewrite the width they tell, docs/serving-runs.md, docs/serving-speculation.md and docs/serving-memory.md
	$(BIN)/python -m planner.validate.serving.widths --out profiles/data/fits/serving.json
	$(BIN)/python -m planner.validate.serving.page --out docs/serving-runs.md
	$(BIN)/python -m planner.validate.serving.speculation_page --out docs/serving-speculation.md
	$(BIN)/python -m planner.validate.serving.cache_page --out docs/serving-memory.md

dataflow-report: $(INSTALLED) ## Rewrite docs/dataflow.md: experiments on workflows of several model calls
	$(BIN)/python -m planner.validate.dataflow.report --data $(DATA)/rlhf --out docs/dataflow.md
	@sed -n '/^## Result/,/^## E1:/p' docs/dataflow.md | sed '$$d'

trials: $(INSTALLED) ## Rewrite docs/trials.md: decisions under uncertainty on the published runs under DATA
	$(BIN)/python -m planner.decisions.measured_page --data $(DATA)/endtoend --out docs/trials.md

text-models: $(INSTALLED) ## Train models that read MLIR as language; rewrite docs/text-models.md (needs PyTorch)
	$(PIP_INSTALL) --editable '.[fit,neural]'
	$(BIN)/python -m costmodels.calibration.text_models --data $(DATA) --out docs/text-models.md

bench: $(INSTALLED_DEV) ## Measure speed and memory on one core; rewrite docs/benchmarks.md
	$(BIN)/python tests/benchmarks/report.py
	@cat docs/benchmarks.md

search-report: $(INSTALLED_DEV) ## Search small and realistic jobs and others' problems, compare agents; rewrite docs/search*.md
	$(BIN)/python -m tests.search.report
	$(BIN)/python -m tests.search.agents_report

docs: $(INSTALLED_DEV) ## Rewrite the command output and figures that the documentation quotes
	$(BIN)/python tests/docs/refresh.py

constraints: $(INSTALLED_DEV) ## Rewrite constraints.txt from what is installed
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==[^ ]+$$'; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## Remove the environment and every cache
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .schemathesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable .
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $(INSTALLED) $@

$(INSTALLED_FIT): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[fit]'
	@touch $(INSTALLED) $@
