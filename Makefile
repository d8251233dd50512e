# make demo            train, export, index and query on cases drawn by a program: demo/report.html and more
# make demo DATA=DIR   the same on a Derm7pt release_v0 folder (VISION= and TEXT= name weights, by hub name or folder)
# make test            lint, types and tests
# make test-all        the tests that take more than ten seconds too
# make docs            the documentation, built strictly: site/
# make reference       docs/reference again, from the code
# make sbom            CycloneDX of the locked packages: dist/runtime.cdx.json of what a hospital runs, dist/all.cdx.json
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SBOM := dist
CYCLONEDX := $(BIN)/cyclonedx-py environment --pyproject pyproject.toml --spec-version 1.6 --output-reproducible

.PHONY: demo test test-all lint docs reference sbom clean

demo: $(READY)
	$(BIN)/skinret demo --out demo $(if $(DATA),--data "$(DATA)") $(if $(VISION),--vision "$(VISION)") $(if $(TEXT),--text "$(TEXT)")

test: lint
	$(BIN)/python -m pytest -n logical --maxprocesses 4 -m "not slow"

test-all: lint
	$(BIN)/python -m pytest -n logical --maxprocesses 4

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: docs/requirements.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict --quiet

reference: $(READY)
	$(BIN)/python docs/generate_reference.py

sbom: $(SBOM)/runtime.cdx.json $(SBOM)/all.cdx.json

$(SBOM)/runtime.cdx.json: $(READY)
	mkdir -p $(SBOM)
	$(PYTHON) -m venv --clear --without-pip $(SBOM)/runtime
	$(BIN)/python -m pip --python $(SBOM)/runtime install --quiet --disable-pip-version-check -c constraints.txt '.[cpu,dicom,report,sign]'
	$(CYCLONEDX) --output-file $@ $(SBOM)/runtime
	rm -r $(SBOM)/runtime

$(SBOM)/all.cdx.json: $(READY)
	mkdir -p $(SBOM)
	$(CYCLONEDX) --output-file $@ $(VENV)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo dist site .pytest_cache .mypy_cache .ruff_cache
