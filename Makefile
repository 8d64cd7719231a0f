# Every target does its own set-up: `make demo` and `make test` each work first on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
FLOORS := .venv-floors

.PHONY: help setup demo docs test test-fast coverage test-floors test-replicas lint bench clean

help:
	@echo "make demo   train a TPM on the embedded model and write runs/demo/report.html"
	@echo "make docs   the documentation as a site in build/site, with links checked"
	@echo "make test   lint, types and tests"
	@echo "make test-fast   tests that are not marked slow, without lint and types"
	@echo "make coverage   all tests, with a report of the lines that ran"
	@echo "make test-floors   the tests at the lowest versions that pyproject.toml allows"
	@echo "make test-replicas   the tests that need Ray, which make test skips"
	@echo "make lint   ruff and mypy"
	@echo "make bench  the names of all benchmarks, and what each measures, takes and writes"
	@echo "make setup  the virtual environment only"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

demo: setup
	$(BIN)/tpdm demo

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/pytest -n auto

test-fast: setup
	$(BIN)/pytest -n auto -m "not slow"

coverage: setup
	$(BIN)/pytest -n auto --cov=tpdm --cov-branch --cov-report=term-missing:skip-covered

# pip keeps torch where constraints.txt wants it, for older CPU builds are not to be had from PyPI; uv finds in seconds
# whether all other floors go together, and says which do not. Old libraries warn of newer ones: no errors here.
test-floors: $(FLOORS)/.ready
	$(FLOORS)/bin/pytest -n auto -W ignore

$(FLOORS)/.ready: pyproject.toml constraints.txt tests/support/floors.py
	$(PYTHON) -m venv --clear $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet --upgrade pip
	$(FLOORS)/bin/python -m pip install --quiet -c constraints.txt uv torch
	$(FLOORS)/bin/python tests/support/floors.py pyproject.toml > $(FLOORS)/floors.txt
	$(FLOORS)/bin/uv pip install --quiet --python $(FLOORS)/bin/python \
		-c constraints.txt -c $(FLOORS)/floors.txt -e ".[dev]"
	@touch $(FLOORS)/.ready

test-replicas: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,ray]"
	$(BIN)/pytest tests/serving/test_replicas.py

bench: setup
	for kind in quality speed reliability; do $(BIN)/python -m benchmarks.$$kind --list; done

clean:
	rm -rf $(VENV) $(FLOORS) runs build dist .pytest_cache .ruff_cache .mypy_cache
