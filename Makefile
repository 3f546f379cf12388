# Two commands are enough: `make demo` runs the main job on a real scene, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
# uv installs in a fraction of pip's time; where it can't be had or can't reach the packages, pip does the same.
install = $(BIN)/python -m pip install --disable-pip-version-check --quiet uv && $(BIN)/uv pip install --requirement $(1) \
	|| { echo "uv can't install here: pip goes on, which takes several times as long" >&2; \
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --requirement $(1); }

.PHONY: demo test lint unit integration bench docs lock clean

demo: .venv/installed
	$(BIN)/terraseg demo

test: lint unit integration

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Two test files at a time, one thread each.
unit: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/unit

integration: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/integration

bench: .venv/installed-dev
	$(BIN)/python benchmarks/run_all.py

docs: .venv/installed-dev
	$(BIN)/mkdocs build --strict

lock: .venv/installed
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-annotate pyproject.toml --output-file requirements.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-annotate pyproject.toml --extra dev \
		--constraint requirements.txt --output-file requirements-dev.txt

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "terraseg needs Python 3.11 to 3.13: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(call install,requirements.txt)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(call install,requirements-dev.txt)
	touch $@

clean:
	rm -rf .venv build site *.egg-info src/*.egg-info
