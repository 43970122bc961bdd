# Everything runs from a fresh clone: the targets make their own environment in .venv.
# Needs Python 3.11 or newer (PYTHON=... chooses one) and make.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# -qq: only errors; pip would otherwise print where this machine fetches its packages from.
PIP := $(PY) -m pip install -qq --disable-pip-version-check --no-input
SOURCES := sdk node tests examples scripts bench

# Another environment's settings must not reach into ours.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_CONSTRAINT PIP_REQUIREMENT PIP_REQUIRE_VIRTUALENV
unexport VIRTUAL_ENV UV_SYSTEM_PYTHON UV_PROJECT_ENVIRONMENT

.PHONY: help
help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- environment ----------------------------------------------------------------------------------------------------

.PHONY: install
install: $(VENV)/.comity ## make .venv with every pinned package and Comity in it

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Comity needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true); choose one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "error: '$(PYTHON) -m venv' does not work; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# The pins are a closed set made by `make lock`, so --no-deps is safe; the few packages that come as source only are
# built with the pinned tools of constraints-build.txt.
$(VENV)/.pins: constraints-build.txt constraints.txt | $(PY)
	@echo "installing the pinned packages into $(VENV) (the first time takes a few minutes)"
	@$(PIP) --no-deps --require-hashes -r constraints-build.txt
	@$(PIP) --no-deps --require-hashes --no-build-isolation --use-pep517 -r constraints.txt
	@touch $@

$(VENV)/.comity: pyproject.toml $(VENV)/.pins
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: lock
lock: $(VENV)/.comity ## resolve the pins anew (UPGRADE=1 takes newer versions)
	@lock() { $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' "$$@"; }; \
	  lock pyproject.toml --extra node --extra flower --extra demo --group dev $(if $(UPGRADE),--upgrade) -o constraints.txt; \
	  printf 'editables\nhatchling\nsetuptools\n' | lock - -c constraints.txt -o constraints-build.txt

# ---- what a newcomer runs -------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.comity ## five organizations on this machine, the whole way (ARGS=... goes to `comity demo`)
	@$(BIN)/comity demo $(ARGS)

.PHONY: test
test: lint types layers drift ## every check and every test
	$(PY) -m pytest $(ARGS)

.PHONY: test-fast
test-fast: $(VENV)/.comity ## the tests that take less than ten seconds each
	$(PY) -m pytest -m 'not slow' $(ARGS)

# ---- single checks --------------------------------------------------------------------------------------------------

.PHONY: lint
lint: $(VENV)/.comity ## ruff (rules and format) and buf
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	cd proto && ../$(BIN)/buf lint

.PHONY: format
format: $(VENV)/.comity ## let ruff format and mend what it can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

.PHONY: types
types: $(VENV)/.comity ## mypy, strict
	$(BIN)/mypy

.PHONY: layers
layers: $(VENV)/.comity ## import-linter: who may import whom
	$(BIN)/lint-imports --no-cache

.PHONY: drift
drift: $(VENV)/.comity ## the committed protobuf stubs are those of proto/
	$(PY) scripts/gen_proto.py --check

.PHONY: gen
gen: $(VENV)/.comity ## generate the protobuf stubs from proto/
	$(PY) scripts/gen_proto.py

# ---- figures --------------------------------------------------------------------------------------------------------

.PHONY: bench
bench: bench-demo ## every benchmark; writes bench-out/NAME.json

.PHONY: bench-demo
bench-demo: $(VENV)/.comity ## the demo's own rates (ARGS=--help)
	$(PY) -m bench.demo $(ARGS)

# ---- house keeping --------------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build demo-out bench-out
	find sdk node tests examples scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +
