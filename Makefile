# make setup   .venv with everything that running and the demo need
# make demo    upscale a thick-slice MRI volume and a satellite-like scene; products, pictures and errors in demo/
# make test    lint, types, layers and tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint clean
.DELETE_ON_ERROR:

setup: .venv/.setup

# stamps: quick the second time, made again when what is pinned changes
.venv/.setup: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "truescale needs Python 3.11 or newer; name one with PYTHON=python3.12")'
	@echo "setup: making .venv and installing truescale with its demo (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@
	@echo "setup: done; .venv/bin/truescale --help"

.venv/.setup-dev: .venv/.setup
	@echo "setup: installing what the tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.setup
	@$(BIN)/python workflows/demo.py demo

lint: .venv/.setup-dev
	@echo "lint: ruff, mypy, layers"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > .venv/lint-imports.log || { cat .venv/lint-imports.log; exit 1; }

test: lint
	@echo "test: pytest"
	@$(BIN)/python -m pytest

clean:
	rm -rf .venv demo runs
