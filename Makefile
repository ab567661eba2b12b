PYTHON ?= python3
BIN := .venv/bin
# Where it is set, each process would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0 $(BIN)/python -m pytest -p no:cacheprovider

.PHONY: demo ray test test-all test-plain test-engine test-numeric lint lock clean

.venv/.installed: requirements/cpu.txt requirements/smollm2.txt pyproject.toml requirements/install.sh
	PYTHON=$(PYTHON) sh requirements/install.sh
	touch $@

# Ray, in an environment of its own that sees .venv too.
build/ray-env/.installed: .venv/.installed requirements/ray.txt requirements/ray.sh
	sh requirements/ray.sh
	touch $@

demo: .venv/.installed
	$(BIN)/python -m bench.demo

# What `mi-prun-ab export --to ray-serve` writes, on a cluster of two nodes on this machine. Minutes.
ray: build/ray-env/.installed
	@OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind build/ray-env/bin/python tests/serve/ab/on_ray/ray_cluster.py

test: .venv/.installed
	@$(BIN)/python tests/run.py

test-all: .venv/.installed
	@$(BIN)/python tests/run.py --all

test-plain: .venv/.installed
	$(PYTEST) -m "not engine"

test-engine: .venv/.installed
	$(PYTEST) -m engine

# The cheap numeric tests under other instruction sets and numbers of threads.
test-numeric: .venv/.installed
	@$(BIN)/python tests/run.py --numeric

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

lock: .venv/.installed
	$(BIN)/python requirements/lock.py

clean:
	rm -rf .venv build demo *.egg-info
