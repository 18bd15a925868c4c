# Every target sets up what it needs by itself. `make help` lists them.
#
#   PYTHON=...   interpreter for the virtual environment (default: python3; 3.11 or newer)
#   ARGS=...     passed on, as in `make demo ARGS=--quick` or `make test ARGS="-k qtha"`
#   WORKERS=...  processes of the tests (default: 2)
#   NATIVE_ARGS=...  options of CMake for the native kernel, as in make native NATIVE_ARGS=-DCMAKE_CXX_COMPILER=clang++

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=
NATIVE_ARGS ?=

VENV := .venv
BIN  := $(VENV)/bin/python
PIP  := $(BIN) -m pip --disable-pip-version-check install -c constraints.txt

# The native kernel: its sources, and where CMake of the environment builds it.
NATIVE := native/CMakeLists.txt native/exports.map $(wildcard native/src/*)
BUILD  := build/native
CMAKE  := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake
CTEST  := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ctest
compile = $(CMAKE) -S native -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DSKBUILD_STATE=editable \
            -DQPEFT_BUILD_TESTS=ON -DQPEFT_SANITIZE= -DQPEFT_PYTHON=$(CURDIR)/$(BIN) $(NATIVE_ARGS) \
          && $(CMAKE) --build $(BUILD) --target qpeft_native && $(CMAKE) --install $(BUILD)

# One OpenMP thread for each test process: more threads than cores make torch slower by orders of magnitude.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN) -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help setup python demo test test-slow style format docs native native-test native-sanitize clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(VENV)/installed-test $(VENV)/installed-native ## create .venv and install everything the demo and the tests need

demo: $(VENV)/installed-test $(VENV)/installed-native ## fine-tune a small language model with QTHA and with LoRA, side by side
	$(BIN) -m qpeft demo $(ARGS)

test: $(VENV)/installed-test $(VENV)/installed-native ## the fast tests (under 10 minutes on 2 cores)
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/installed-test $(VENV)/installed-native ## the tests that take minutes or need a real model
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

native: $(VENV)/installed-test ## compile what changed in the native kernel; an error is an error
	@$(compile)
	@touch $(VENV)/installed-native

native-test: native ## the C++ tests of the native kernel
	@$(CMAKE) --build $(BUILD)
	@$(CTEST) --test-dir $(BUILD) --output-on-failure

native-sanitize: $(VENV)/installed-test ## the C++ tests with the address, undefined behaviour and thread sanitizers
	@for kind in address,undefined thread; do \
	  build=$(BUILD)-$${kind%%,*}; \
	  $(CMAKE) -S native -B $$build -G Ninja -DCMAKE_BUILD_TYPE=None -DQPEFT_BUILD_TESTS=ON -DQPEFT_SANITIZE=$$kind \
	    -DQPEFT_PYTHON=$(CURDIR)/$(BIN) $(NATIVE_ARGS) && $(CMAKE) --build $$build --target native_test \
	  && $(CTEST) --test-dir $$build --output-on-failure || exit 1; \
	done

clean: ## remove what was built, but not .venv and not runs/
	rm -rf build dist site src/qpeft/simulators/_native $(VENV)/installed-native .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The marks are made after pip has succeeded, so an interrupted installation is simply repeated.
$(VENV)/installed-test: pyproject.toml constraints.txt | python
	@echo "Installing qpeft and its test tools into $(VENV) (once; a few minutes, mostly PyTorch) ..."
	$(PIP) --config-settings=wheel.cmake=false -e '.[test]'
	@touch $@

# Apart from the packages, so that a change of the kernel's sources costs a compilation and no more. Where it cannot be
# compiled, everything works without it, slower: `make native` shows why.
$(VENV)/installed-native: $(NATIVE) | $(VENV)/installed-test
	@echo "Compiling the native kernel ..."
	@mkdir -p build && if { $(compile); } >build/native.log 2>&1; then tail -n 1 build/native.log; else \
	  echo "note: the native kernel could not be compiled (build/native.log says why; a C++17 compiler is needed)." >&2; \
	  echo "      qpeft works without it, slower. Once there is a compiler: make native" >&2; fi
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
