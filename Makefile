# Every target sets up what it needs: a virtual environment from the lock file, Kafka from infra/kafka/pom.xml.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
ARGS ?=
NAME ?=
KEEP ?=
RENEW ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-containers check bench up down faults mutants model

ON_CONTAINERS := $(addprefix tests/integration/test_,servers.py containers.py main_path.py)
RENEW_LOCK = $(BIN)/pip-compile -q --upgrade --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
  --no-emit-trusted-host --strip-extras --allow-unsafe --extra stack --extra testing --extra zstd --extra dev \
  -o requirements.lock pyproject.toml

help:  ## Say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

$(VENV)/.ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: install Python 3.11 or newer (apt-get install python3 python3-venv)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: set PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: apt-get install python3-venv" >&2; exit 2; }
	@echo "installing the locked requirements into $(VENV) (once)" >&2
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -W ignore -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . 2> $(VENV)/install.log || { cat $(VENV)/install.log >&2; exit 1; }
	@touch $@

setup: $(VENV)/.ready  ## Install everything (the other targets do it as well); RENEW=1 renews requirements.lock
	@$(if $(RENEW),$(RENEW_LOCK))
	@$(BIN)/python -m infra.stack prepare

demo: setup  ## The main job on real servers; ARGS="--seconds 60 --rate 2000 --json-only", ARGS=--naive
	@$(BIN)/python -m infra.demo $(ARGS)

check: $(VENV)/.ready  ## Format, lint, types, arrows, unit tests: under a minute
	@$(BIN)/ruff format --check -q . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@mkdir -p .staleproof
	@$(BIN)/lint-imports --no-cache > .staleproof/lint-imports.log 2>&1 || { cat .staleproof/lint-imports.log; exit 1; }
	@$(PYTEST) -q tests/unit $(ARGS)

test: setup check  ## Everything: check, then property and integration tests on real servers
	@$(PYTEST) -q -n 2 --dist loadfile -m "not slow" tests/mutants tests/model tests/faults tests/property tests/integration $(ARGS)

test-containers: setup  ## The main path on containers; starts Docker Engine and builds images where it must; KEEP=1 leaves it running
	-@$(BIN)/python -m infra.images up
	@STALEPROOF_BACKEND=containers $(PYTEST) -q $(ON_CONTAINERS) $(ARGS); status=$$?; \
	  $(if $(KEEP),,$(BIN)/python -m infra.images down &&) exit $$status

faults: setup  ## Every fault of the table on real servers, the slow ones too; prints the seconds to convergence
	@$(PYTEST) -q tests/faults tests/integration/test_acl.py $(ARGS)

mutants: setup  ## Break the code on purpose in every listed way, and see the named test fail
	@$(PYTEST) -q -n 2 tests/mutants $(ARGS)

bench: setup  ## One benchmark, JSON on the last line: NAME=worker ARGS="--events 200000"; NAME=x lists them
	@$(BIN)/python -m tests.benchmarks $(NAME) $(ARGS)

model: $(VENV)/.ready  ## Every interleaving around the guard, in the long worlds too: half an hour
	@$(PYTEST) -q -n 2 --dist load tests/model $(ARGS)

up: setup  ## Start the local stack and leave it running; one that runs is asked how it is
	@$(BIN)/python -m infra.stack up

down: $(VENV)/.ready  ## Stop the local stack
	@$(BIN)/python -m infra.stack down
