"""A pruned checkpoint of the bundled model, and one engine that serves it to all tests here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mi_prun.process_group import ProcessGroup, free_port

DROPPED = (2, 3, 7)
KEY = "key-of-the-tests"
FLAGS = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")
STARTUP_SECONDS = 400  # on a machine with other work


@dataclass(frozen=True)
class Server:
    url: str
    group: ProcessGroup


def run(model: Path | str, port: int, log: Path, *flags: str) -> ProcessGroup:
    command = [sys.executable, "-m", "serve.cli", "--model", str(model), "--port", str(port), *FLAGS, *flags]
    return ProcessGroup(command, log, {"VLLM_CPU_KVCACHE_SPACE": "1"})


def start(model: Path | str, log: Path, *flags: str) -> Server:
    port = free_port()
    group = run(model, port, log, *flags)
    try:
        group.wait_ready(f"http://127.0.0.1:{port}/health", timeout_seconds=STARTUP_SECONDS)
    except BaseException:
        group.stop()
        raise
    return Server(f"http://127.0.0.1:{port}", group)


@pytest.fixture(scope="session")
def pruned(prune: Callable[..., Path], reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(reference, tmp_path_factory.mktemp("serve") / "pruned", DROPPED)


@pytest.fixture
def pruned_copy(pruned: Path, tmp_path: Path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(pruned, tmp_path / "copy"))


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`start_server(model, *flags)`: an engine of the test's own."""
    started: list[Server] = []

    def add(model: Path | str, *flags: str) -> Server:
        started.append(start(model, tmp_path / f"server-{len(started)}.log", *flags))
        return started[-1]

    yield add
    for server in started:
        server.group.stop()


@pytest.fixture
def end_of(tmp_path: Path, nothing_left: Callable[..., bool]) -> Callable[..., tuple[int, str]]:
    """`end_of(model, *flags)`: exit status and log of a server that does not start; no process is left.

    Python's tracker of shared memory ends when the last process that holds its pipe has: a moment after the server.
    """

    def wait(model: Path, *flags: str) -> tuple[int, str]:
        with run(model, free_port(), tmp_path / "server.log", *flags) as group:
            status = group.process.wait(STARTUP_SECONDS)
            assert nothing_left(group.processes())
        return status, group.log.read_text()

    return wait


@pytest.fixture(scope="session")
def server(
    pruned: Path,
    nothing_left: Callable[..., bool],
    engine_cores: Callable[..., list[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Shared: guarded by KEY, with a name of its own; SIGTERM to the server alone ends all of it."""
    found = start(pruned, tmp_path_factory.mktemp("log") / "server.log", "--api-key", KEY, "--served-model-name", "p25")
    processes = found.group.processes()
    cores = engine_cores(processes)
    yield found
    found.group.process.terminate()
    status = found.group.process.wait(90)
    all_ended = nothing_left(processes)
    found.group.stop()
    assert status == 0
    assert cores
    assert all_ended


@pytest.fixture
def key() -> str:
    assert KEY not in os.environ.values()
    return KEY
