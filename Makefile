# Needs Python 3.10 or newer and make; everything else is installed into .venv. PYTHON=python3.12 picks another.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Which tests `make test` runs; `make test-all` runs every one.
MARKS ?= not slow
# The stack that qlora_core and its tests need: torch first and pinned. transformers asks for Python 3.11 or newer, so
# with Python 3.10 the doctor alone is installed and tested.
EXTRAS ?= train
TORCH ?= torch==2.13.0
TRAIN := $(shell $(PYTHON) -c 'import sys; print(".train" if sys.version_info >= (3, 11) else "")')
STACK := $(if $(TRAIN),$(VENV)/$(TRAIN))

.PHONY: demo test test-all bench docs lint clean

demo: $(VENV)/.base $(STACK) ## check, repair and undo on an example; then the loader on tiny models
	@sh examples/demo.sh $(BIN) $(if $(TRAIN),train)

test: $(VENV)/.test $(STACK)
	$(BIN)/python -m pytest -q -m "$(MARKS)" --durations=15

test-all: $(VENV)/.test $(STACK)
	$(BIN)/python -m pytest -q -m ""

bench: $(VENV)/.train ## against the environment reports of the stack itself
	$(BIN)/python benchmarks/check.py --python $(BIN)/python

docs: $(VENV)/.docs ## the generated pages and pictures, then the site, strictly
	$(BIN)/python -m qlora_doctor.docs docs
	$(BIN)/python -m qlora_doctor.messages
	$(BIN)/python -m qlora_doctor.docs.chinese
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist site demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; try PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) --editable '.[docs,test]'
	@touch $@

# torch first and pinned, so that the rest is resolved around it. transformers asks for Python 3.11 or newer.
$(VENV)/.train: $(VENV)/.base
	$(PIP) '$(TORCH)'
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@
