"""The plugin: declared to vLLM, light, and without effect outside `mi-prun-serve`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import psutil
import pytest

from mi_prun.process_group import alive
from vllm_ext import compat
from vllm_ext.names import SERVER_PID
from vllm_ext.plugin import register, register_loader


def test_vllm_finds_it() -> None:
    found = [point for point in entry_points(group="vllm.general_plugins") if point.name == "mi_prun"]
    assert [point.load() for point in found] == [register]


def test_it_imports_nothing_heavy_and_may_run_twice() -> None:
    code = "import sys; from vllm_ext.plugin import register; register(); register(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


PROGRAM = """
import multiprocessing, os

def loader():
    from vllm import plugins
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader
    plugins.plugins_loaded = False
    plugins.load_general_plugins()
    return type(get_model_loader(LoadConfig(load_format="mi_prun")))

def say(who):
    print(who, loader() is loader(), loader().__name__, flush=True)

if __name__ == "__main__":
    say("parent")
    child = os.fork()
    if not child:
        say("forked")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    child = multiprocessing.get_context("spawn").Process(target=say, args=["spawned"])
    child.start()
    child.join()
    assert child.exitcode == 0
"""


@pytest.mark.long
def test_it_is_there_once_and_in_children_that_are_forked_or_spawned(tmp_path: Path) -> None:
    """As vLLM loads it, several times in each process. A second registration would be warned of."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.endswith("Loader")]
    assert said == [f"{who} True MiPrunLoader" for who in ("parent", "forked", "spawned")]
    assert "already registered" not in done.stdout + done.stderr


@pytest.mark.parametrize("found", ["0.24.2", "0.34.0"])
def test_a_version_outside_the_range_is_one_line_and_no_loader(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: str
) -> None:
    monkeypatch.setattr(compat, "version", lambda name: found)
    monkeypatch.delitem(sys.modules, "vllm_ext.loader", raising=False)
    register_loader()
    said = capsys.readouterr().err
    assert said == (
        f"mi-prun: vLLM {found} is not supported; supported are 0.25 to 0.33: install one of these; load format "
        "mi_prun is not available\n"
    )
    assert "vllm_ext.loader" not in sys.modules


def test_a_child_of_the_server_ends_with_it() -> None:
    child = "import time; from vllm_ext.plugin import register; register(); print('ready', flush=True); time.sleep(60)"
    server = (
        "import os, subprocess, sys, time; "
        f"os.environ['{SERVER_PID}'] = str(os.getpid()); "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True); "
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    follower = psutil.Process(int(process.stdout.readline()))
    assert alive(follower)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while alive(follower) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(follower)
