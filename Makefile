# Needs Python 3.11 or newer and make; everything else is set up by the targets themselves.
PYTHON ?= $(firstword $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p; done))
VENV := .venv
BIN := $(VENV)/bin
# The gateway's tests start many programs, and have processes of their own: large ones died while they did.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadscope --max-worker-restart 0 --durations 25
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo pacs-demo test check docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Pneumoscope into $(VENV), a few minutes the first time"
	$(PIP) --editable ".[serve]"
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable ".[dev]"
	@touch $@

setup: $(VENV)/.core  ## build .venv with the command line and all it needs

demo: setup  ## train, test, compare and explain three networks on synthetic radiographs
	rm -rf runs/demo
	$(BIN)/pneumoscope demo --out runs/demo

pacs-demo: setup  ## a day of invented patients, the gateway and a real PACS; ARGS=--once ends when all is done
	sh scripts/pacs/install || echo "goes on without Orthanc"
	PYTHONPATH=. $(BIN)/python -m scripts.pacs.demo --out runs/pacs-demo $(ARGS)

check: $(VENV)/.dev  ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check  ## all checks and all tests
	$(PYTEST) --ignore tests/serving
	$(PYTEST) tests/serving

docs: $(VENV)/.dev  ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

clean:  ## remove what the targets made, except the environment
	rm -rf runs build dist docs/_build .mypy_cache .ruff_cache .pytest_cache
