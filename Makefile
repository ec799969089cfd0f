# make quickstart   the main job, from nothing
# make test         the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test slow bench lint clean

quickstart: $(STAMP)
	$(BIN)/openood-dream quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-autosave

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Installed once; again only when setup.py names other packages.
$(STAMP): setup.py
	$(PYTHON) -c 'import sys; sys.exit("openood-dream needs Python 3.10 or newer; set PYTHON=/path/to/python3") if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
