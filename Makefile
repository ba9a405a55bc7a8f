# Two targets do all set-up in .venv: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: demo test test-slow test-rare test-all test-aot test-aot-all test-aot-gpu golden-aot golden-aot-gpu faults docs docs-site notebook golden lint format types clean

demo: .venv/installed
	$(BIN)/transformer-jax train --config=configs/number_words.py:en-de --workdir=$(RUN)
	$(BIN)/transformer-jax evaluate --workdir=$(RUN)
	@printf '\nA few numbers, typed as words:\n'
	@printf '%s\n' 'seven' 'twenty-four' 'three hundred and sixty-five' 'nine thousand, eight hundred and seventy-six' \
	  > $(RUN)/numbers.txt
	@$(BIN)/transformer-jax translate --workdir=$(RUN) < $(RUN)/numbers.txt > $(RUN)/translated.txt
	@paste -d'|' $(RUN)/numbers.txt $(RUN)/translated.txt | sed 's/|/  ->  /'
	@$(BIN)/transformer-jax attention --workdir=$(RUN) --text='twenty-four' --out=$(RUN)/attention.png > /dev/null
	@printf '\nEverything lies in %s: attention.png (every head), evaluations.json, metrics.jsonl, checkpoints/\n' $(RUN)

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not slow and not rare'

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'slow and not rare'

test-rare: .venv/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m rare

# Compiled for TPUs that are not here, in an environment with their compiler.
test-aot: .venv-aot/installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-aot/bin/python -m pytest -q -m 'not slow' tests/aot

test-aot-all: .venv-aot/installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-aot/bin/python -m pytest -q tests/aot

golden-aot: .venv-aot/installed
	PYTHONPATH=tests .venv-aot/bin/python tests/aot/golden.py

# The same for NVIDIA GPUs.
test-aot-gpu: .venv-aot-gpu/installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-aot-gpu/bin/python -m pytest -q tests/aot

golden-aot-gpu: .venv-aot-gpu/installed
	PYTHONPATH=tests .venv-aot-gpu/bin/python tests/aot/golden.py

faults: .venv/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m fault

test-all: test test-slow test-rare test-aot types

docs: .venv/installed
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python docs/generate_notebook.py
	$(BIN)/python -m transformer_jax.report.site

notebook: .venv/installed-dev
	$(BIN)/python docs/generate_notebook.py --execute

golden: .venv/installed-dev
	PYTHONPATH=tests $(BIN)/python tests/config/golden.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-dev
	$(BIN)/ruff format .

types: .venv/installed-dev
	$(BIN)/pyright

docs-site: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

.venv-aot/installed: setup.cfg pyproject.toml
	test -x .venv-aot/bin/python || $(PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check -e '.[aot-tpu]' hypothesis pytest
	touch $@

.venv-aot-gpu/installed: setup.cfg pyproject.toml
	test -x .venv-aot-gpu/bin/python || $(PYTHON) -m venv .venv-aot-gpu
	.venv-aot-gpu/bin/python -m pip install --quiet --disable-pip-version-check -e '.[aot-gpu]' hypothesis pytest
	touch $@

clean:
	rm -rf .venv .venv-aot .venv-aot-gpu runs
