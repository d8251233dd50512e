# make demo            the whole road on cases drawn by a program: everything lands in demo/
# make demo DATA=DIR   the same on a Derm7pt release_v0 folder (VISION= and TEXT= name weights, by hub name or folder)
# make test            lint, types and tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/skinret demo --out demo $(if $(DATA),--data "$(DATA)") $(if $(VISION),--vision "$(VISION)") $(if $(TEXT),--text "$(TEXT)")

test: lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo dist .pytest_cache .mypy_cache .ruff_cache
