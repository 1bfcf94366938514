# make demo    the whole chain on real input: the Python standard library's own source code
# make test    every test, on a fresh machine
# make check   what must be green before every commit: format, lint, types, architecture, fast tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format clean
.DELETE_ON_ERROR:

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bigmodel needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo.sh

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow and not gpu"

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv work build *.egg-info
