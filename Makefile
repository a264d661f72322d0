# `make demo` and `make test` install everything first: a virtual environment in .venv, the toolkit
# and its pinned dependencies.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed

.PHONY: demo test test-all exhaustive attack check docs clean

demo: $(STAMP)
	$(BIN)/ppl-lvm demo

# One worker per core, each with one thread; tests that share a costly fixture share a worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup

test: $(STAMP)
	$(PYTEST) -m "not slow and not exhaustive and not attack"

# With the tests of more than about three seconds and long variants of quick ones. CI runs this.
test-all: $(STAMP)
	$(PYTEST)

# Every model with every guide and objective that supports it, for 50 steps: hours.
exhaustive: $(STAMP)
	$(PYTEST) -m exhaustive tests

# Hostile run directories, kills, threads and bad inputs in great number: hours.
attack: $(STAMP)
	$(PYTEST) -m attack tests/attack

# models/ and guides/ have their installed names only in a real (not an editable) install, so the
# type checker and the import rules run on one in build/typecheck.
check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p ppl_lvm
	cd build/typecheck && PYTHONPATH=. ../../$(BIN)/lint-imports ../../pyproject.toml --no-cache

# The documentation site in build/site; needs no network once the extra is installed.
docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going docs build/site

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ppl_lvm needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build
