# make demo     install maskloom into .venv, with what the demo needs, and run the main job
# make test     install what the tests need and run them
# make check    format, lint, types, import arrows
# make fix      format, and mend what can be mended
# make nightly  the tests with many more random examples
# make release  check, build, compare and install a release into dist/; it uploads nothing (docs/releases.md)
# make bench    the CPU benchmarks, into build/
# make site     the site, built strictly into build/site
# make gpu      the tests that need a CUDA device
# make setup    everything a developer needs
# make clean    remove what was made here

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check fix bench site gpu nightly release setup clean
.DEFAULT_GOAL := test

demo: $(VENV)/.package
	$(BIN)/maskloom demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_surface.py -k arrow

fix: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/blocks.py --out build/blocks.csv
	$(BIN)/python benchmarks/attention.py --out build/attention_cpu.csv
	$(BIN)/python benchmarks/importing.py --out build/importing.csv
	$(BIN)/python benchmarks/packing.py --out build/packing.csv

site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html; for the search serve it: $(BIN)/python -m http.server -d build/site"

gpu: $(VENV)/.dev
	$(BIN)/python -m pytest tests/gpu

nightly: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=nightly

release: $(VENV)/.dev
	$(BIN)/python -m tools.release

setup: $(VENV)/.dev

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis maskloom-demo

$(VENV)/.made:
	@echo "making $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "maskloom needs Python 3.11 or newer; set PYTHON=")'
	@rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.package: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing maskloom into $(VENV)"
	$(PIP) --editable '.[show,cli]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing maskloom and its development tools into $(VENV)"
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.package $@
