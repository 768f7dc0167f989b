PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

demo: .venv/installed  ## the whole recipe on a tiny model: from raw text to a chat model; prints where its report is
	$(BIN)/python -m qwen3_jax.main --config=experiments/miniature.py --workdir=workdir/miniature

test: .venv/installed-test  ## run the whole test suite on two workers
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

lint: .venv/installed-test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
