# Everything runs in .venv, with the tested set of constraints.txt. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

SYSTEM_PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Alone and first: a later `pip install` would otherwise fetch gigabytes of CUDA libraries
# where a CPU build of this version is to be had.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.venv/stamp-created:
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || "$(SYSTEM_PYTHON)" -m venv --clear .venv || { \
	  rm -rf .venv; \
	  echo "Python's venv module is not complete. On Debian or Ubuntu, type:" >&2; \
	  echo "  sudo apt-get install python3-venv" >&2; exit 1; }
	@touch $@

.venv/stamp-torch: .venv/stamp-created constraints.txt
	@echo "Installing $(TORCH) into .venv" >&2
	@$(PIP) "$(TORCH)"
	@touch $@

.venv/stamp-run: .venv/stamp-torch pyproject.toml
	@echo "Installing optbench into .venv" >&2
	@$(PIP) -e .
	@touch $@

.venv/stamp-dev: .venv/stamp-torch pyproject.toml
	@echo "Installing optbench and its tools into .venv" >&2
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/stamp-run

.PHONY: setup
setup: .venv/stamp-dev ## Make .venv with optbench and all its tools

.PHONY: demo
demo: .venv/stamp-run ## Train, render and compare a small sweep; prints the report's path
	@$(PYTHON) -m optbench sweep=demo

# One worker per core, each with one torch thread; more than eight would wait for the disk.
WORKERS := -n logical --maxprocesses 8 --dist worksteal

.PHONY: test
test: .venv/stamp-dev ## Run the test suite: every package, without what is slow
	@$(PYTHON) -m pytest $(WORKERS)

.PHONY: test-all
test-all: .venv/stamp-dev test-lowest ## Run the whole test suite: lowest versions, what is slow, many examples, tools/tinybase
	@$(PYTHON) -m pytest $(WORKERS) -m "not full_size" --hypothesis-profile=many tests tools

# In an environment of its own. Old versions give warnings that are no fault of ours.
LOWEST := .venv/oldest
$(LOWEST)/stamp: .venv/stamp-created pyproject.toml constraints.txt tests/packaging/lowest_versions.py
	@echo "Installing the lowest versions that pyproject.toml allows into $(LOWEST)" >&2
	@"$(SYSTEM_PYTHON)" -m venv --clear $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet -c constraints.txt "$(TORCH)" packaging
	@$(LOWEST)/bin/python tests/packaging/lowest_versions.py > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e '.[test]'
	@touch $@

.PHONY: test-lowest
test-lowest: $(LOWEST)/stamp ## Run the fast suite with the lowest versions of everything that pyproject.toml allows
	@$(LOWEST)/bin/python -m pytest $(WORKERS) -o filterwarnings=default tests \
	  --deselect tests/test_docs.py::test_every_recipe_was_measured_with_the_package_that_is_installed

.PHONY: test-full-size
test-full-size: .venv/stamp-dev ## Load, train and resume checkpoints of published sizes (12 GB of memory)
	@$(PYTHON) -m pytest -m full_size tests/full_size

.PHONY: check
check: .venv/stamp-dev ## Format, lint, types and layers of imports; changes nothing
	@echo "ruff format" && .venv/bin/ruff format --check --quiet .
	@echo "ruff check" && .venv/bin/ruff check --quiet .
	@echo "mypy" && .venv/bin/mypy --no-error-summary
	@echo "lint-imports" && { layers=$$(.venv/bin/lint-imports --no-cache --no-logo) || { echo "$$layers"; exit 1; }; }

.PHONY: fix
fix: .venv/stamp-dev ## Format and repair what can be repaired by itself
	@.venv/bin/ruff format --quiet .
	@.venv/bin/ruff check --fix .

.PHONY: torture
torture: .venv/stamp-dev ## The long failure campaign: kills, flips, races, full disks; prints a table
	@$(PYTHON) -m tests.torture

.PHONY: mutants
mutants: .venv/stamp-dev ## Break lines that numbers depend on, one at a time; every one must be noticed
	@$(PYTHON) -m tests.mutation

.PHONY: bench
bench: .venv/stamp-dev ## Measure speed; prints and asserts nothing
	@for file in tests/benchmarks/*.py; do $(PYTHON) "$$file"; done

.PHONY: docs
docs: .venv/stamp-dev ## Make the pages of docs/ that come from recipes, figures and other trainers' options
	@$(PYTHON) tests/benchmarks/optimizer_costs.py --page
	@$(PYTHON) -m tools.kohya_names
	@$(PYTHON) -m tools.coming_from

.PHONY: wheel-smoke
wheel-smoke: .venv/stamp-dev ## Build a wheel, install it apart, use it from an empty folder
	@$(PYTHON) -m pytest -m "" tests/packaging

.PHONY: clean
clean: ## Remove .venv and everything the tools made; keeps runs/
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
