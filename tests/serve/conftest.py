"""A pruned checkpoint of the bundled model, and one engine for all tests here: the same model by a plan, out of the
dense one's files on the hub.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.model.weight_files import INDEX_NAME
from mi_prun.process_group import ProcessGroup, free_port
from serve.scratch import PREFIX

DROPPED = (2, 3, 7)
KEY = "key-of-the-tests"
FLAGS = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")
STARTUP_SECONDS = 400  # on a machine with other work
HUB_NAME = "owner/reference"


@dataclass(frozen=True)
class Server:
    url: str
    group: ProcessGroup


def run(
    model: Path | str, port: int, log: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> ProcessGroup:
    command = [sys.executable, "-m", "serve.cli", "--model", str(model), "--port", str(port), *FLAGS, *flags]
    return ProcessGroup(command, log, {"VLLM_CPU_KVCACHE_SPACE": "1", **(environment or {})})


def start(model: Path | str, log: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Server:
    port = free_port()
    group = run(model, port, log, *flags, environment=environment)
    try:
        group.wait_ready(f"http://127.0.0.1:{port}/health", timeout_seconds=STARTUP_SECONDS)
    except BaseException:
        group.stop()
        raise
    return Server(f"http://127.0.0.1:{port}", group)


def one_file_a_block(model: Path, out: Path) -> Path:
    """The same model in more files."""
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(model / "model.safetensors")
    homes = {
        name: f"model-{name.split('.')[2] if name.startswith('model.layers.') else 'rest'}.safetensors"
        for name in weights
    }
    for home in set(homes.values()):
        save_file({name: tensor for name, tensor in weights.items() if homes[name] == home}, out / home)
    (out / INDEX_NAME).write_text(json.dumps({"weight_map": homes}))
    return out


def scratch_folders(processes: Sequence[psutil.Process]) -> set[Path]:
    """Of these alone: each has a helper to remove it, which is told its name."""
    last_words = [process.cmdline()[-1:] for process in processes]
    return {Path(word) for words in last_words for word in words if Path(word).name.startswith(PREFIX)}


@pytest.fixture(scope="session")
def on_the_hub(
    hub_of_others: Any, reference: Path, pruned: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, str]]:
    """The dense model, a file a block, under a name; a plan of it; and the environment of a user who has neither."""
    home = tmp_path_factory.mktemp("hub")
    hub_of_others.models[HUB_NAME] = one_file_a_block(reference, home / "reference")
    read_manifest(pruned).plan.write(home / "plan.json")
    # With a process for each worker, as a user has it.
    environment = {"XDG_CACHE_HOME": str(home / "user"), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    return HUB_NAME, home / "plan.json", hub_of_others.environment(home / "cache") | environment


@pytest.fixture(scope="session")
def ends_with(
    nothing_left: Callable[..., bool], engine_cores: Callable[..., list[psutil.Process]]
) -> Callable[[Server, signal.Signals, int, Path], None]:
    """`ends_with(server, signal, status, user's cache)`: only the server is told to end. Its engine core and workers
    follow, kill -9 included, and so does its temporary folder. The folder that it serves is kept: the next start finds
    what vLLM compiled.
    """

    def end(server: Server, signum: signal.Signals, status: int, user: Path) -> None:
        processes = server.group.processes()
        made = scratch_folders(processes)
        assert engine_cores(processes)
        assert len(made) == 1
        assert all(folder.is_dir() for folder in made)
        server.group.process.send_signal(signum)
        assert server.group.process.wait(90) == status
        assert nothing_left(processes)
        assert not any(folder.exists() for folder in made)
        (kept,) = (user / "mi-prun" / "served").iterdir()
        assert (kept / "config.json").is_file()

    return end


@pytest.fixture(scope="session")
def pruned(prune: Callable[..., Path], reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(reference, tmp_path_factory.mktemp("serve") / "pruned", DROPPED)


@pytest.fixture
def pruned_copy(pruned: Path, tmp_path: Path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(pruned, tmp_path / "copy"))


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`start_server(model, *flags, environment=...)`: an engine of the test's own."""
    started: list[Server] = []

    def add(model: Path | str, *flags: str, environment: Mapping[str, str] | None = None) -> Server:
        log = tmp_path / f"server-{len(started)}.log"
        started.append(start(model, log, *flags, environment=environment))
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
    on_the_hub: tuple[str, Path, dict[str, str]],
    ends_with: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Shared: a plan's model, guarded by KEY, with a name of its own. Ctrl-C to the server alone ends all of it."""
    model, plan, environment = on_the_hub
    log = tmp_path_factory.mktemp("log") / "server.log"
    flags = ("--plan", str(plan), "--api-key", KEY, "--served-model-name", "p25")
    found = start(model, log, *flags, environment=environment)
    try:
        yield found
        ends_with(found, signal.SIGINT, 0, Path(environment["XDG_CACHE_HOME"]))
    finally:
        found.group.stop()


@pytest.fixture
def key() -> str:
    assert KEY not in os.environ.values()
    return KEY
