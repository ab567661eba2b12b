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

from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.process_group import ProcessGroup, alive, free_port
from serve.ab.arms.arm_identity import digest_of
from serve.ab.config import ArmConfig

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
hang_s = 3.0
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
    processes = [child for child in children if "fake_engine.py" in " ".join(child.cmdline())]
    return {"pruned" if child.environ().get("OF_THE_ARM") else "dense": child for child in processes}


def supervisor(proxy: Any) -> psutil.Process:
    children = psutil.Process(proxy.group.process.pid).children()
    return next(child for child in children if "serve.ab.arms.supervisor" in child.cmdline())


def arms(proxy: Any) -> dict[str, Any]:
    return {arm["name"]: arm for arm in proxy.call("/health")[2]["arms"]}


def restarts(proxy: Any) -> dict[str, int]:
    return {name: int(arm["restarts"]) for name, arm in arms(proxy).items()}


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
    wait_until(lambda: arms(proxy)["dense"]["restarts"] >= 1)
    first["pruned"].send_signal(signal.SIGSTOP)
    wait_until(lambda: arms(proxy)["pruned"]["restarts"] >= 1)
    wait_until(lambda: all(arm["available"] for arm in arms(proxy).values()))
    second = engines(proxy)
    assert {process.pid for process in first.values()}.isdisjoint(process.pid for process in second.values())
    assert not any(alive(process) for process in first.values())
    assert proxy.ask({**admin, "x-mi-prun-arm": "dense"})[0] == 200

    # What looks after the engines dies itself, and one of them is deaf to the end that the kernel tells it.
    before = restarts(proxy)
    second["pruned"].send_signal(signal.SIGSTOP)
    supervisor(proxy).send_signal(signal.SIGKILL)
    wait_until(lambda: all(count > before[name] for name, count in restarts(proxy).items()))
    wait_until(lambda: all(arm["available"] for arm in arms(proxy).values()))
    assert not any(alive(process) for process in second.values())
    assert proxy.ask({**admin, "x-mi-prun-arm": "dense"})[0] == 200
    assert proxy.log.read_text().count("what ran the engines ended with status -9; next start in 0 s") == 2
    second = engines(proxy)

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
    from serve.ab.arms import supervisor

    now = 1000.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    spec = supervisor.EngineSpec(name="dense", command=("true",), env={}, key="key", log=tmp_path / "log")
    young = supervisor.SupervisedEngine(spec, supervisor.Restart(back_off_s=1.0, back_off_max_s=5.0))
    assert [young.next_start() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    young._since = now
    now += supervisor.YOUNG_S + 1.0  # this time it lived
    assert (young.next_start(), young.due) == (1.0, now + 1.0)


def test_an_engine_is_deaf_from_the_first_time_on_that_it_was_asked_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks it while another one starts: minutes that say nothing."""
    from serve.ab.arms import supervisor

    now = 1000.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    spec = supervisor.EngineSpec(name="dense", command=("true",), env={}, key="key", log=tmp_path / "log")
    asked = supervisor.SupervisedEngine(spec, supervisor.Restart(hang_s=60.0, end_s=1.0))
    asked.url = f"http://127.0.0.1:{free_port()}"  # where nobody answers
    asked._group = ProcessGroup([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    try:
        now += 300.0
        assert asked.ended() is None
        now += 59.0
        assert asked.ended() is None
        now += 2.0
        assert asked.ended() == "it has not answered for 60 s"
    finally:
        asked.stop()


def check(arms: dict[str, Any]) -> None:
    from serve.ab.arms.supervisor import check_engines
    from serve.ab.config import Config

    check_engines(Config.model_validate({"arms": arms, "model_name": "m"}))


def test_models_plans_and_flags_are_checked_before_an_engine_is_started(
    tmp_path: Path, reference: Path, prune: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=r"arm p: .*typo\.json"):
        check({"p": {"model": "owner/name", "plan": str(tmp_path / "typo.json")}})
    for flag in ("--served_model_name", "--api_key", "--api-key=secret", "--port=1"):
        with pytest.raises(UserError, match="is set by mi-prun-ab itself"):
            check({"p": {"model": str(reference), "flags": [flag, "x"]}})
    plan, learned = tmp_path / "plan.json", tmp_path / "learned"
    read_manifest(prune(reference, tmp_path / "pruned", [3])).plan.write(plan)
    learned.write_text("no tensors")
    with pytest.raises(UserError, match=r"arm p: .*learned"):
        check({"p": {"model": str(reference), "plan": str(plan), "flags": ["--adapter", str(learned)]}})
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_bytes((reference / "config.json").read_bytes())
    with pytest.raises(UserError, match="has no weights"):
        check({"p": {"model": str(tmp_path / "config")}})
    dummy = {"model": str(tmp_path / "config"), "flags": ["--load-format", "dummy"]}
    check({"p": dummy})
    arm = ArmConfig.model_validate(dummy)
    assert digest_of(arm) == digest_of(arm)


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


def test_no_engine_gets_the_proxys_keys(
    tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, fake_engine: Path
) -> None:
    """Nor those of other arms; its own, and what it may need, stay. As the kernel has its environment."""
    from serve.ab.arms import supervisor
    from serve.ab.arms.arm import make_arms
    from serve.ab.arms.supervisor_client import SupervisorClient
    from serve.ab.config import Config

    keys = ("MI_PRUN_AB_ADMIN_KEY", "MI_PRUN_AB_API_KEYS", "FLEET_KEY")
    for name in (*keys, "HF_TOKEN"):
        monkeypatch.setenv(name, "a-secret-of-the-tests")
    monkeypatch.setattr(supervisor, "SERVE", (sys.executable, str(fake_engine)))
    arms = {"dense": {"model": str(reference)}, "fleet": {"url": "http://h", "api_key_env": "FLEET_KEY"}}
    config = Config.model_validate({"arms": arms, "model_name": "m"})
    others = set(psutil.Process().children(recursive=True))
    with SupervisorClient(config, make_arms(config), tmp_path) as engines:
        engines.start()
        processes = set(psutil.Process().children(recursive=True)) - others
        ours = [
            process for process in processes if {"serve.ab.arms.supervisor", str(fake_engine)} & set(process.cmdline())
        ]
        environments = [Path(f"/proc/{process.pid}/environ").read_bytes() for process in ours]
    assert len(ours) == 2
    for environment in environments:
        assert not any(name.encode() in environment for name in keys)
        assert b"HF_TOKEN=a-secret-of-the-tests" in environment
    assert any(b"VLLM_API_KEY=" in environment for environment in environments)
    assert not any(alive(process) for process in ours)


ONCE = """
import sys, pathlib, http.server
mark = pathlib.Path(sys.argv[1])
if mark.exists():
    sys.exit("told to die")
mark.touch()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Answer).serve_forever()
"""


def test_an_engine_that_dies_at_every_start_is_started_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is scaled: seconds of the real one are twentieths here."""
    import threading

    from serve.ab.arms import supervisor

    monkeypatch.setattr(supervisor, "PROBE_S", 0.01)
    command = (sys.executable, "-c", ONCE, str(tmp_path / "mark"))
    spec = supervisor.EngineSpec(name="dense", command=command, env={}, key="key", log=tmp_path / "log")
    restart = supervisor.Restart(back_off_s=0.05, back_off_max_s=0.2, end_s=1.0)
    said: list[tuple[float, dict[str, Any]]] = []
    supervisor = supervisor.Supervisor(
        supervisor.Specs(engines=(spec,), restart=restart), lambda event: said.append((time.monotonic(), event))
    )
    thread = threading.Thread(target=supervisor.run)
    thread.start()

    def events(what: str) -> list[tuple[float, dict[str, Any]]]:
        return [event for event in said if event[1]["event"] == what]

    try:
        wait_until(lambda: bool(events("ready")))
        group = supervisor.engines[0]._group
        assert group is not None
        os.kill(group.process.pid, signal.SIGKILL)
        wait_until(lambda: len(events("down")) >= 6)
    finally:
        supervisor.stop()
        thread.join()
    assert "told to die" in events("down")[1][1]["why"]
    starts, ends = [at for at, _ in events("starting")][1:6], [at for at, _ in events("down")][:5]
    waits = [start - end for start, end in zip(starts, ends, strict=True)]
    wanted = (0.05, 0.1, 0.2, 0.2, 0.2)  # from a moment before the end is said
    assert all(wait >= least - 0.02 for wait, least in zip(waits, wanted, strict=True)), waits


@pytest.mark.parametrize(
    ("flags", "quiet"), [((), True), (("--max-model-len", "9"), True), (("--no-disable-uvicorn-access-log",), False)]
)
def test_an_engine_logs_no_line_for_each_request_unless_it_is_asked_to(flags: tuple[str, ...], *, quiet: bool) -> None:
    """Its log would grow for months; the access log is the proxy's."""
    from serve.ab.arms.supervisor import command_of

    words = command_of(ArmConfig(model="owner/name", flags=flags), ["name"])
    assert ("--disable-uvicorn-access-log" in words) == quiet
    assert words[-len(flags) :] == flags or not flags
