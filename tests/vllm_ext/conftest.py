"""Engines of the tests here: programs in a process group of their own, of which nothing is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mi_prun.process_group import ProcessGroup

ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# One core each; the CPU backend would give both ranks the same.
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
TIMEOUT_SECONDS = 500


@pytest.fixture(scope="session")
def in_engine(
    tmp_path_factory: pytest.TempPathFactory, nothing_left: Callable[..., bool]
) -> Callable[..., dict[str, Any]]:
    """`in_engine(jobs)` runs the program of that name and gives back what it printed; "log" is all of it."""

    def run(jobs: list[dict[str, Any]], *, two_ranks: bool = False, drafts: bool = False) -> dict[str, Any]:
        asked = tmp_path_factory.mktemp("engine") / "jobs.json"
        environment = TWO_RANKS if two_ranks else ONE_PROCESS
        asked.write_text(json.dumps({"jobs": jobs, "environment": environment, "drafts": drafts}))
        program = [sys.executable, str(Path(__file__).with_name("in_engine.py")), str(asked)]
        with ProcessGroup(program, asked.with_suffix(".log")) as group:
            status = group.process.wait(TIMEOUT_SECONDS)
            all_ended = nothing_left(group.processes())  # before the group ends what is left
        assert status == 0, group.log.read_text(errors="replace")[-3_000:]
        assert all_ended
        log = group.log.read_text(errors="replace")
        found: dict[str, Any] = json.JSONDecoder().raw_decode(log, log.rindex('{"results"'))[0]
        return found | {"log": log}

    return run
