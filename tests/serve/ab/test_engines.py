"""Engines that are started here: one after the other, watched, started again, and never left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mi_prun.process_group import ProcessGroup, alive, free_port

RUNNER = Path(__file__).with_name("ab_with_fakes.py")
TOML = """
model_name = "the-model"
log_folder = "{folder}"
split = {{dense = 90, pruned = 10}}
[arms.dense]
model = "{reference}"
flags = ["--seed", "1"]
[arms.pruned]
model = "{reference}"
env = {{OF_THE_ARM = "yes"}}
[restart]
hang_s = 1.0
end_s = 1.0
back_off_s = 0.2
[health]
probe_s = 0.2
probe_timeout_s = 0.4
"""


@pytest.fixture
def start_ab(tmp_path: Path, reference: Path, proxy_class: Any) -> Iterator[Callable[..., Any]]:
    """`start_ab(port)`: `mi-prun-ab` with two engines of its own; fake ones, started as the real ones are."""
    started: list[ProcessGroup] = []
    (tmp_path / "ab.toml").write_text(TOML.format(folder=tmp_path, reference=reference))

    def start(port: int) -> Any:
        proxy = proxy_class(tmp_path, "--config", str(tmp_path / "ab.toml"), port=port, runner=RUNNER)
        started.append(proxy.group)
        proxy.wait_ready(60)
        return proxy

    yield start
    for group in started:
        group.stop()


def engines(proxy: Any) -> dict[str, psutil.Process]:
    """The engines' processes, by arm."""
    children = psutil.Process(proxy.group.process.pid).children(recursive=True)
    found = [child for child in children if "fake_engine.py" in " ".join(child.cmdline())]
    return {"pruned" if child.environ().get("OF_THE_ARM") else "dense": child for child in found}


def arms(proxy: Any) -> dict[str, Any]:
    return {arm["name"]: arm for arm in proxy.call("/health")[2]["arms"]}


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def test_engines_are_started_again_and_end_with_the_proxy(start_ab: Callable[..., Any], admin: dict[str, str]) -> None:
    """Killed, hung, and the proxy itself killed: nothing is orphaned, and the weights are kept."""
    port = free_port()
    proxy = start_ab(port)
    first = engines(proxy)
    assert set(first) == {"dense", "pruned"}
    assert all(os.getpgid(process.pid) == process.pid for process in first.values())  # a group each
    assert "--served-model-name the-model --seed 1 --port" in " ".join(first["dense"].cmdline())
    key = first["dense"].environ()["VLLM_API_KEY"]
    assert key not in " ".join(first["dense"].cmdline())
    status, headers, _ = proxy.ask({**admin, "x-mi-prun-arm": "dense"})
    assert (status, headers["x-mi-prun-arm"]) == (200, "dense")  # it was asked with the engine's key

    first["dense"].send_signal(signal.SIGKILL)
    wait_until(lambda: arms(proxy)["dense"]["restarts"] == 1)
    first["pruned"].send_signal(signal.SIGSTOP)
    wait_until(lambda: arms(proxy)["pruned"]["restarts"] == 1)
    wait_until(lambda: all(arm["available"] for arm in arms(proxy).values()))
    second = engines(proxy)
    assert {process.pid for process in first.values()}.isdisjoint(process.pid for process in second.values())
    assert not any(alive(process) for process in first.values())
    assert proxy.ask({**admin, "x-mi-prun-arm": "dense"})[0] == 200

    proxy.experiment(weights={"dense": 70.0, "pruned": 30.0}, shadow_share=0.5, why="try more")
    second["dense"].send_signal(signal.SIGSTOP)  # one that cannot end by itself
    everything = [*second.values(), *psutil.Process(proxy.group.process.pid).children(recursive=True)]
    proxy.group.process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(alive(process) for process in everything), 60)

    proxy = start_ab(port)
    state = proxy.experiment()["state"]
    assert (state["weights"], state["shadow_share"]) == ({"dense": 70.0, "pruned": 30.0}, 0.5)
    third = list(engines(proxy).values())
    assert len(third) == 2
    proxy.group.process.send_signal(signal.SIGTERM)
    assert proxy.group.process.wait(40) == 128 + signal.SIGTERM
    assert not any(alive(process) for process in third)


def test_the_back_off_doubles_for_an_engine_that_ends_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.ab import engine

    now = 1000.0
    monkeypatch.setattr(engine.time, "monotonic", lambda: now)
    spec = engine.EngineSpec(name="dense", command=("true",), env={}, key="key", log=tmp_path / "log")
    young = engine.Engine(spec, engine.Restart(back_off_s=1.0, back_off_max_s=5.0))
    assert [young.next_start() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    young._since = now
    now += engine.YOUNG_S + 1.0  # this time it lived
    assert (young.next_start(), young.due) == (1.0, now + 1.0)


def test_an_engine_that_does_not_start_ends_the_command(tmp_path: Path, reference: Path) -> None:
    import subprocess

    words = ["--arm", f"dense={reference}", "--state", str(tmp_path / "s"), "--port", str(free_port())]
    command = [sys.executable, str(RUNNER), *words, "--", "--die", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the engine of arm dense did not start: ")
    assert "ended with status 1" in last
    assert "told to die" in last
