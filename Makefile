# make quickstart   the main job, from nothing
# make test         the tests; make slow: those that take minutes each
# make lint         what ruff and mypy say
# make bench        how fast, in ratios
# make gpu          tests and benchmarks on a CUDA GPU, and the table of docs/gpu.md
# make lowest       the tests with the lowest versions that setup.py allows, in an environment of their own
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST ?= .venv-lowest
# the oldest Python that is here and allowed; the oldest torch has wheels for 3.10 to 3.12 alone
LOWEST_PYTHON ?= $(firstword $(foreach v,3.10 3.11 3.12,$(shell python$(v) -c "import sys; print(sys.executable)" 2>/dev/null)) $(PYTHON))

.PHONY: quickstart test test-fast slow bench gpu lint lowest clean

quickstart: $(STAMP)
	$(BIN)/openood-dream quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not trains" -n 2 --dist loadfile

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-autosave

gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy openood_dream

lowest:
	test -x $(LOWEST)/bin/python || $(LOWEST_PYTHON) -m venv $(LOWEST)
	grep -oE '[A-Za-z0-9-]+>=[0-9.]+' setup.py | sed 's/>=/==/' > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --constraint $(LOWEST)/constraints.txt --editable ".[dev]"
	$(LOWEST)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile

# Installed once; again only when setup.py names other packages.
$(STAMP): setup.py
	$(PYTHON) -c 'import sys; sys.exit("openood-dream needs Python 3.10 or newer; set PYTHON=/path/to/python3") if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build *.egg-info
