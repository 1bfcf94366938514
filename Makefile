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

# Real input that every machine has. make shows each command before it runs.
STDLIB = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
LEFT_OUT = --exclude '*/site-packages/*' --exclude '*/test/*' --exclude '*/tests/*' --exclude '*/idle_test/*'

demo: .venv/ready
	$(BIN)/bigmodel prepare '$(STDLIB)/**/*.py' $(LEFT_OUT) -w work/demo
	$(BIN)/bigmodel train --minutes 3.5 -w work/demo
	$(BIN)/bigmodel evaluate -w work/demo
	$(BIN)/bigmodel deploy -w work/demo
	$(BIN)/bigmodel predict "def __init__(self" --max-tokens 60 -w work/demo
	$(BIN)/bigmodel predict "class Error(Exception):" --max-tokens 60 --temperature 0.7 -w work/demo
	$(BIN)/bigmodel predict "    for name in" --max-tokens 60 --temperature 0.7 --seed 1 -w work/demo
	$(BIN)/bigmodel status -w work/demo

test: .venv/ready
	$(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist worksteal

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv work build *.egg-info
