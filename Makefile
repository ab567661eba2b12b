PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-plain test-engine lint lock clean

.venv/.installed: requirements/cpu.txt pyproject.toml requirements/install.sh
	PYTHON=$(PYTHON) sh requirements/install.sh
	touch $@

demo: .venv/.installed
	$(BIN)/python -m bench.demo

# Tests that start an engine and those that do not run side by side: an engine's start leaves most of two cores idle.
test: .venv/.installed lint
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-plain test-engine

test-plain: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not engine" -p no:cacheprovider

test-engine: .venv/.installed
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m pytest -m engine -p no:cacheprovider

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/.installed
	$(BIN)/python requirements/lock.py

clean:
	rm -rf .venv build demo *.egg-info
