# Everything a person types. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
# The stages are called as `python -m workflow.<stage>`: with the environment first on the path, by its python.
export PATH := $(BIN):$(PATH)
READY := $(VENV)/.ready

.PHONY: help setup repro snakemake test test-faults test-slurm lint types docs check preset readme ui sync clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make the virtual environment and install everything

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; name another one: make setup PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

repro: setup ## run the whole pipeline with DVC
	@python -m workflow.lockfile
	dvc repro
	@echo && cat results/summary/table.md

snakemake: setup ## run the whole pipeline with Snakemake, two jobs at a time
	snakemake --cores 2
	@echo && cat results/summary/table.md

test: setup ## run the tests in a process more than there are cores, since some of them wait; in four at most
	python -m pytest -r s --numprocesses $$(python -c 'import os; print(min(os.cpu_count() + 1, 4))') --dist loadfile --no-loadscope-reorder

test-faults: setup ## kill stages at random moments and compare what comes out
	python -m pytest --numprocesses auto --maxprocesses 2 --dist worksteal tests/faults

test-slurm: setup ## run the pipeline through a Slurm of one node, started here (docs/cluster.md)
	@SUMNAS_TEST_SLURM=$(SUMNAS_TEST_SLURM) python -m pytest -rs tests/slurm

lint: setup ## check the style of Python and Snakemake files, and the Dockerfile
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile
	hadolint --ignore DL3008 Dockerfile # versions of Debian's packages are those of the base image's release

types: setup ## check the types
	mypy

docs: $(VENV)/.docs ## build the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

check: setup ## check params.yaml
	@python -m workflow.check

preset: setup ## write params.yaml from presets/: make preset NAME=quick
	@python -m workflow.preset $(NAME) $(if $(FORCE),--force)

readme: setup ## put the results of the default run into README.md
	@python -m workflow.readme $(or $(NAME),quick)

ui: setup ## look at all runs in MLflow on 127.0.0.1:5000 (make ui PORT=5001)
	@python -m sumnas.tracking ui --port $(or $(PORT),5000)

sync: setup ## send to MLflow what a stage could not
	@python -m sumnas.tracking sync

clean: ## delete results and prepared data (not the environment, not the caches)
	rm -rf results data/prepared
