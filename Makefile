# Two targets do everything on a fresh Debian or Ubuntu machine:
#   make demo    set up, then run the main job end to end (DATA=folder: real pictures as camera)
#   make test    set up, then lint, types, layering, unit and integration tests
# Both install what they need: system packages by apt (as root or through sudo), Python packages
# into .venv, at the versions in constraints.txt.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PARTS ?= 200

.PHONY: help setup demo test check format clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6

setup: $(VENV)/.ready

$(VENV)/.ready: constraints.txt pyproject.toml tools/setup.sh
	bash tools/setup.sh $(VENV)

demo: setup
	$(BIN)/metal-edge demo --parts $(PARTS) $(if $(DATA),--data $(DATA))

check: setup
	$(BIN)/ruff format --check metal_edge tests
	$(BIN)/ruff check metal_edge tests
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_layering.py

test: check
	$(BIN)/pytest -q tests

format: setup
	$(BIN)/ruff format metal_edge tests
	$(BIN)/ruff check --fix metal_edge tests

clean:
	rm -rf build $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
