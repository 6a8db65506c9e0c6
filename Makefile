# Each target does all its own set-up: a virtual environment in .venv and an install into it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
RUN ?= runs/demo
# Two test processes with a thread each; a test that computes is not helped by more.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-all mutants bench check format docs package clean audit

demo: .venv/.installed
	$(BIN)/gnothi demo --out $(RUN)

test: .venv/.installed-test
	$(PYTEST) -m "not slow"

test-all: .venv/.installed-test
	$(PYTEST)

mutants: .venv/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py

audit: .venv/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip_audit --skip-editable --progress-spinner off

bench: .venv/.installed-test
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.ensemble
	$(BIN)/python -m benchmarks.auxiliaries
	$(BIN)/python -m benchmarks.local_memory
	$(BIN)/python -m benchmarks.clusters

check: .venv/.installed-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy gnothi

format: .venv/.installed-check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

package: .venv/.installed-package
	rm -rf build dist
	$(BIN)/python -m build --quiet
	$(BIN)/python -m venv --clear build/fresh
	build/fresh/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	mkdir -p build/elsewhere && cd build/elsewhere && ../fresh/bin/python ../../tests/smoke.py ../..

clean:
	rm -rf .venv build dist site *.egg-info

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "gnothi needs Python 3.11 or newer; none was found"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[onnx]'
	touch $@

.venv/.installed-test: pyproject.toml .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

.venv/.installed-check: pyproject.toml .venv/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[check]'
	touch $@

.venv/.installed-docs: pyproject.toml .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

.venv/.installed-package: pyproject.toml .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[package]'
	touch $@
