PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-plain test-engine-load test-engine-serve lint ruff mypy imports lock clean

.venv/.installed: requirements/cpu.txt requirements/smollm2.txt pyproject.toml requirements/install.sh
	PYTHON=$(PYTHON) sh requirements/install.sh
	touch $@

demo: .venv/.installed
	$(BIN)/python -m bench.demo

# Side by side: an engine's start leaves most of two cores idle.
test: .venv/.installed ruff imports
	$(MAKE) --no-print-directory --jobs 3 --output-sync=target test-plain test-engine-load test-engine-serve

PYTEST := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m pytest -p no:cacheprovider

# The three take about as long as each other.
test-plain: .venv/.installed
	$(PYTEST) -m "not engine" --ignore=tests/serve

test-engine-load: .venv/.installed mypy
	$(PYTEST) -m engine tests/mi_prun tests/vllm_ext tests/serve/ab
	$(PYTEST) -m "not engine" tests/serve

test-engine-serve: .venv/.installed
	$(PYTEST) -m engine --ignore=tests/serve/ab tests/serve tests/bench

lint: ruff mypy imports

ruff: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: .venv/.installed
	$(BIN)/mypy

imports: .venv/.installed
	$(BIN)/lint-imports --no-logo

lock: .venv/.installed
	$(BIN)/python requirements/lock.py

clean:
	rm -rf .venv build demo *.egg-info
