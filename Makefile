# Two commands are enough: `make demo` runs the main job on a real scene, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint unit integration bench docs lock clean

demo: .venv/installed
	$(BIN)/terraseg demo

test: lint unit integration

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: .venv/installed
	$(BIN)/pytest tests/unit

# Two test files in parallel, one thread each: most of them wait for their own processes. Unit tests fork, and xdist's
# workers do not always survive a fork.
integration: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/integration

bench: .venv/installed
	$(BIN)/python benchmarks/run_all.py

docs: .venv/installed
	$(BIN)/mkdocs build --strict

lock: .venv/installed
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --no-annotate pyproject.toml -o requirements.txt

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "terraseg needs Python 3.11 to 3.13: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv build site *.egg-info src/*.egg-info
