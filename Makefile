# Every target sets up what it needs: .venv, the locked requirements, the compiled package. A second call
# rebuilds only what changed. PYTHON=python3.12 chooses the interpreter. ARGS="--n 1000" passes options to the command.
PYTHON ?= python3
PYTHON312 ?= python3.12
ARGS ?=

venv := .venv
python := $(venv)/bin/python
installed := $(venv)/.installed
requirements := $(venv)/.requirements
saved := benchmarks/.saved
cxx_files = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: help setup build demo test test-portable test-slow bench lint format check-torch211 check-neon clean

help:
	@echo "make setup      makes .venv, installs the requirements, builds the package and installs it editable"
	@echo "make demo       runs the main example: NPK Grams of a trained net (ARGS=--help lists options)"
	@echo "make test       runs the tests; make test-slow runs those that need minutes or many gigabytes"
	@echo "make test-portable  runs the tests once more, with the portable ops that devices without kernels run"
	@echo "make bench      times every op and compares with the last saved run"
	@echo "make lint       checks with ruff, clang-format and mypy; make format rewrites files as ruff and clang-format want"
	@echo "make check-torch211  builds for torch 2.11 and Python 3.12 (PYTHON312=python3.12); needs nvcc, downloads gigabytes"
	@echo "make check-neon compiles the kernels for NEON for 64-bit Arm and compares them with plain C++ in an emulator"
	@echo "make clean      removes .venv and everything built"

setup: $(installed)

demo: setup
	$(python) benchmarks/npk_gram.py $(ARGS)

test: setup
	$(python) -m pytest -m "not slow" $(ARGS)

test-portable: setup
	GATEDOPS_BACKEND=portable $(python) -m pytest -m "not slow" $(ARGS)

test-slow: setup
	$(python) -m pytest -m slow --timeout 3600 $(ARGS)

bench: setup
	$(python) -m pytest benchmarks/suite -o python_files='bench_*.py' --benchmark-enable --benchmark-only \
	  --benchmark-storage=file://$(saved) --benchmark-autosave \
	  $(if $(wildcard $(saved)/*/*.json),--benchmark-compare) $(ARGS)

lint: $(requirements)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(venv)/bin/clang-format --dry-run --Werror $(cxx_files)
	$(python) -m mypy

format: $(requirements)
	$(python) -m ruff check --fix .
	$(python) -m ruff format .
	$(venv)/bin/clang-format -i $(cxx_files)

check-torch211:
	scripts/check_torch.sh $(PYTHON312) 2.11.0

check-neon:
	scripts/check_neon.sh

clean:
	rm -rf $(venv) build *.egg-info gatedops/_C*.so gatedops/_C*.stamp

# The build runs before the install, which then finds the built objects. So an error of setup.py is the last line of the
# output, and is not buried in pip's report.
$(installed): setup.py pyproject.toml $(requirements) | build
	$(python) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

build: $(requirements)
	@mkdir -p build
	@echo "building gatedops._C (commands and warnings: build/build.log)"
	@$(python) setup.py --quiet build_ext --inplace > build/build.log 2>&1 || { tail -n 60 build/build.log; exit 1; }

$(requirements): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "gatedops needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": use make PYTHON=python3.11")'
	$(PYTHON) -m venv $(venv)
	$(python) -m pip install --quiet --requirement requirements.lock
	@touch $@
