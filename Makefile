# Every target does its own set-up; `make` alone lists them.
# TORCH=skip uses the torch that the system's Python already has (a CUDA build, for instance).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= pinned
JOBS ?= auto

.DEFAULT_GOAL := help
.PHONY: help demo test lint types floors examples golden bench all clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | expand -t 12

$(BIN)/python:
ifeq ($(TORCH),skip)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	# where PYTHON is itself a virtual environment, its packages are not the system's: name their folder
	$(PYTHON) -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])" > $(VENV)/torch.pth
	mv $(VENV)/torch.pth $(VENV)/lib/python3*/site-packages/
else
	$(PYTHON) -m venv $(VENV)
endif

# one pip call each, with every version pinned, so that nothing can pull in another torch
$(VENV)/constraints.txt: constraints.txt | $(BIN)/python
ifeq ($(TORCH),skip)
	grep -v -e '^torch==' -e '^triton==' constraints.txt > $@
else
	cp constraints.txt $@
endif

$(VENV)/installed-base: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[dev]'
	touch $(VENV)/installed-base $@

demo: $(VENV)/installed-base ## train, test and picture a network on built-in data (about 2 minutes on 2 cores)
	$(BIN)/rwkvseg demo -o demo

test: $(VENV)/installed-dev ## run every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/installed-dev ## style and spelling
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/codespell src tests docs recipes benchmarks examples README.md CHANGELOG.md CONTRIBUTING.md

types: $(VENV)/installed-dev ## static types
	$(BIN)/mypy

floors: $(VENV)/installed-dev ## who may import whom
	$(BIN)/lint-imports --no-logo

examples: $(VENV)/installed-dev ## run every example
	set -e; for file in examples/*.py; do echo $$file; $(BIN)/python $$file; done

golden: $(VENV)/installed-dev ## write the golden files anew; look at the difference before committing it
	$(BIN)/python -m pytest tests/golden --regenerate -n 0

bench: $(VENV)/installed-dev ## the benchmarks that need no GPU
	$(BIN)/python benchmarks/bench_scan_cpu.py
	$(BIN)/python benchmarks/bench_hd95.py

all: lint types floors test examples ## what CI runs

clean: ## remove what the targets made
	rm -rf $(VENV) demo runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
