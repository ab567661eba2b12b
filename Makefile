PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint lock clean

.venv/.installed: requirements/cpu.txt pyproject.toml requirements/install.sh
	PYTHON=$(PYTHON) sh requirements/install.sh
	touch $@

demo: .venv/.installed
	$(BIN)/python -m bench.demo

test: .venv/.installed lint
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/.installed
	$(BIN)/python requirements/lock.py

clean:
	rm -rf .venv build demo *.egg-info
