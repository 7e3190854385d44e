# `make demo` and `make test` each set up everything on a fresh machine, then do their one job.
# Needs: make, git and Python 3.11 or newer with venv. PYTHON=python3.12 picks another interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help
help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.PHONY: demo
demo: $(STAMP)  ## Erase a concept from the bundled model, judge it, write runs/demo/
	$(BIN)/unteach demo --out runs/demo

.PHONY: test
test: $(STAMP)  ## All checks: style, types, imports, lengths, secrets, sizes, tests
	$(BIN)/python tools/check.py

.PHONY: test-fast
test-fast: $(STAMP)  ## The tests, without the slowest
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m 'not slow'

# What touches other people's libraries; the rest of the suite is arithmetic on torch tensors.
FLOORS := .venv-floors
FLOOR_TESTS ?= tests/diffusion tests/erase tests/guard tests/canvas/test_bundled.py

.PHONY: test-floors
test-floors:  ## The tests of models, methods and guards with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints-floors.txt)"
	$(FLOORS)/bin/python -m pip install --quiet -c constraints-floors.txt -e '.[lora,sign]' pytest hypothesis resvg-py
# transformers 5.6 reads vocab.json in a way that its tokenizers call deprecated.
	$(FLOORS)/bin/python -m pytest -q -W 'ignore:Deprecated in 0.9.0:DeprecationWarning' $(FLOOR_TESTS)

.PHONY: format
format: $(STAMP)  ## Put the code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: install
install: $(STAMP)  ## Only set up .venv

# torch comes first and alone, by its exact version: so the CPU build is taken where one is offered.
# The stamp is older than pyproject.toml or constraints.txt after a change: then the install is repeated.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Unteach needs Python 3.11 or newer; found: " + sys.version.split()[0] + "; to do: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: clean
clean:  ## Remove the environment, the caches and everything that was made
	rm -rf $(VENV) $(FLOORS) build dist runs .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests tools -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +
