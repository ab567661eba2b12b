"""Engines of the tests here, in a program of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# One core each; the CPU backend would give both ranks the same.
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


@pytest.fixture(scope="session")
def in_engine(program: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """`in_engine(jobs)` asks the program of that name and gives back its answer; "log" is what it printed meanwhile."""

    def run(jobs: list[dict[str, Any]], *, two_ranks: bool = False) -> dict[str, Any]:
        script = Path(__file__).with_name("in_engine.py")
        found, log = program(script, **(TWO_RANKS if two_ranks else ONE_PROCESS)).ask(jobs)
        return {**found, "log": log}

    return run
