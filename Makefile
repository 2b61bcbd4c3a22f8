# Every target does its own set-up: a virtual environment in .venv with the versions of constraints.txt, and the package
# installed editable. A second run finds the stamps and starts at once.
#   make test PYTHON=python3.12        another interpreter for the environment
#   make test PYTHON=... VENV=none     use an interpreter that already has everything; only the extension is built

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

SOURCES := setup.py $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.inc')
PIP = $(PY) -m pip --disable-pip-version-check
INSTALL = $(PIP) install --no-index --no-deps --no-build-isolation -e .

ifeq ($(VENV),none)
PY := $(PYTHON)
DEPENDENCIES :=
BUILT := hce_engine/_C$(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
else
PY := $(VENV)/bin/python
DEPENDENCIES := $(VENV)/.dependencies
BUILT := $(VENV)/.built
ifeq ($(wildcard hce_engine/_C.*),)
.PHONY: $(BUILT)
endif
endif

.PHONY: build quickstart test lint types bench

build: $(BUILT)

quickstart: $(BUILT)
	$(PY) -m hce_engine quickstart --out quickstart

test: $(BUILT)
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(DEPENDENCIES)
	$(PY) -m ruff check .

types: $(DEPENDENCIES)
	$(PY) -m mypy

bench: $(BUILT)
	$(PY) -m pytest benchmarks --benchmark-only --benchmark-sort=name $(PYTEST_ARGS)

$(BUILT): $(SOURCES) $(DEPENDENCIES)
	$(INSTALL)
	@touch $@

$(VENV)/.dependencies: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "HCE Engine needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@$(PY) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    extra = project["optional-dependencies"]; \
	    print("\n".join(project["dependencies"] + extra["dev"] + extra["demo"] + extra["report"]))' > $(VENV)/requirements.txt
	@echo "installing the versions of constraints.txt into $(VENV); this takes a few minutes, once"
	$(PIP) install -q -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@
