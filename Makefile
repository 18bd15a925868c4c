# Every target sets up what it needs by itself. `make help` lists them.
#
#   PYTHON=...   interpreter for the virtual environment (default: python3; 3.11 or newer)
#   ARGS=...     passed on, as in `make demo ARGS=--quick` or `make test ARGS="-k qtha"`
#   WORKERS=...  processes of the tests (default: 2)

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

VENV := .venv
BIN  := $(VENV)/bin/python
PIP  := $(BIN) -m pip --disable-pip-version-check install -c constraints.txt

# One OpenMP thread for each test process: more threads than cores make torch slower by orders of magnitude.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN) -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help setup python demo test test-slow style format docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(VENV)/installed-test ## create .venv and install everything the demo and the tests need

demo: $(VENV)/installed-test ## fine-tune a small language model with QTHA and with LoRA, side by side
	$(BIN) -m qpeft demo $(ARGS)

test: $(VENV)/installed-test ## the fast tests (under 10 minutes on 2 cores)
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/installed-test ## the tests that take minutes or need a real model
	$(PYTEST) -m "slow and not gpu" $(ARGS)

style: $(VENV)/installed-test ## ruff and mypy; changes nothing
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy

format: $(VENV)/installed-test ## let ruff mend what it can
	$(BIN) -m ruff check --fix .
	$(BIN) -m ruff format .

docs: $(VENV)/installed-docs ## build the site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN) -m mkdocs build --strict --quiet
	@echo "open site/index.html"

clean: ## remove what was built, but not .venv and not runs/
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The marks are made after pip has succeeded, so an interrupted installation is simply repeated.
$(VENV)/installed-test: pyproject.toml constraints.txt | python
	@echo "Installing qpeft and its test tools into $(VENV) (once; a few minutes, mostly PyTorch) ..."
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/installed-test
	@echo "Installing the tools of the documentation into $(VENV) (once) ..."
	$(PIP) -e '.[docs]'
	@touch $@

# Made anew where there is no working interpreter with pip in it, as after an interruption or an upgrade of Python.
python:
	@"$(BIN)" -c 'import pip' 2>/dev/null || { \
	  command -v "$(PYTHON)" >/dev/null || { \
	    echo "error: there is no $(PYTHON): install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; \
	    exit 1; }; \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: qpeft needs Python 3.11 or newer, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1); name a newer one:" \
	         "make PYTHON=python3.11" >&2; \
	    exit 1; }; \
	  echo "Creating $(VENV) with $$("$(PYTHON)" -V) ..."; \
	  "$(PYTHON)" -m venv --clear $(VENV); }
