# Everything sets up .venv first where it is missing. PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Packages that install builds against (setuptools) are held to the same versions.
INSTALL := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check
ARGS ?=
OUT ?= results/gpu_contact
# What lets two ranks share a GPU.
SHARE = $(if $(NCCL_LIB),LD_PRELOAD=$(NCCL_LIB) NCCL_MULTI_RANK_GPU_ENABLE=1)
# Two tests at a time, those that share a run or a world on one worker.
TWO := --numprocesses=2 --dist=loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-gpu gpu-contact lint types check chaos mutants bench wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(STAMP) ## measure with the default configuration; ARGS="reduction=[none,sum]" overrides it
	$(BIN)/python -m launch $(ARGS)

test: $(STAMP) ## one test of every kind, on the CPU; ARGS="-k name" selects
	$(BIN)/python -m pytest $(TWO) -m "not full" $(ARGS)

test-all: $(STAMP) ## whole matrices, every fault, all hosts: before a release, and for changes to processes
	$(BIN)/python -m pytest $(TWO) $(ARGS)

test-gpu: $(STAMP) ## the tests that need a GPU, on one and on all; NCCL_LIB=libnccl.so.2 (2.30 or newer): also two ranks on one
	$(SHARE) $(BIN)/python -m pytest -m gpu $(ARGS)

gpu-contact: $(STAMP) ## every CUDA path once, in 8 minutes, into OUT; REHEARSE=1 rehearses on the CPU
	OUT=$(OUT) PY=$(CURDIR)/$(BIN)/python bash tests/gpu/first_contact.sh

lint: $(STAMP) ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## strict types
	$(BIN)/mypy

check: lint types test wheel ## all of CI: lint, types, tests, the wheel in a fresh environment

chaos: $(STAMP) ## every fault in every phase, on real runs; ARGS="SIGSTOP" selects
	$(BIN)/python -m tests.chaos $(ARGS)

mutants: $(STAMP) ## plant 40 defects, one at a time: does make test fail for each? ARGS="NAME" selects
	$(BIN)/python -m tests.mutants $(ARGS)

bench: $(STAMP) ## what the harness itself costs: ratios, measured here and now
	$(BIN)/python -m tests.bench $(ARGS)

wheel: $(STAMP) ## build the wheel, install it in a fresh environment, and run it there
	rm -rf build dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --quiet --wheel
	$(BIN)/python tests/try_wheel.py dist/*.whl

clean: ## remove what the other targets made, results excepted
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable '.[compiled,dev]'
	touch $@
