.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint chaos soak bench bench-peers bench-publish clean components

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PEERS := .peers/debezium/.installed .peers/pipelinewise-tap/.installed .peers/pipelinewise-target/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/.installed-wheel-server ## Two throwaway databases, an application and the daemon, live (ARGS="--seconds 10")
	@$(BIN)/cdc demo $(ARGS)

test: components .venv/.installed-dev lint ## Install what is missing, lint, run all tests (ARGS="-k lsn")
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: .venv/.installed-dev ## ruff, mypy and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: .venv/.installed-dev ## Kill the daemon again and again, count rows lost or doubled (ARGS="--seconds 60")
	@$(BIN)/python -m tests.chaos $(ARGS)

soak: .venv/.installed-dev ## Ten minutes of faults, DDL, large transactions, poison (ARGS="--seconds 600")
	@$(BIN)/python -m tests.chaos.soak $(ARGS)

bench: .venv/.installed-bench ## Measure against native logical replication (needs PostgreSQL)
	@$(BIN)/python -m compileall -q cdc # as installed: a start that compiles takes a fifth longer
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(PEERS) ## The same beside Debezium (Java 17) and PipelineWise
	@$(MAKE) --no-print-directory bench ARGS='--only peers $(ARGS)'

bench-publish: $(PEERS) ## Measure all, three rounds; write docs/performance.md's tables and plots
	@$(MAKE) --no-print-directory bench \
	    ARGS='--only targets,growth,peers --rounds 3 --publish $(ARGS)'

clean: ## Remove the virtual environment and everything else made here
	rm -rf .venv .peers build dist *.egg-info .*_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

components:
	@PYTHON='$(PYTHON)' tests/install-components

# The stamp carries the extra's name: what `make demo` needs is less than what `make test` needs.
.venv/.installed-%: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[$*]'
	@touch $@

# Peers of the benchmark, each in an environment of its own: what they need does not go together.
.peers/debezium/.installed: benchmarks/peers/debezium/requirements.txt
	$(INSTALL_PEER)

.peers/pipelinewise-%/.installed: benchmarks/peers/pipelinewise/%.txt
	$(INSTALL_PEER)

define INSTALL_PEER
@PYTHON='$(PYTHON)' tests/install-components venv postgres java
$(PYTHON) -m venv --clear $(@D)
$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
@touch $@
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is missing or older than Python 3.11: install a newer one," \
	        "or name it with 'make PYTHON=/path/to/python3.11 ...'" >&2; exit 1; }
	@PYTHON='$(PYTHON)' tests/install-components venv
	$(PYTHON) -m venv --clear .venv
