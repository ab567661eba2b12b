"""The supervisor of the engines that are started here: it starts them one after the other, watches and restarts them.

It is a process of its own (`python -m serve.ab.arms.supervisor`), and outlives the proxy by as long as it takes to end
the engines. Its input is one line of JSON, what to run, and ends when the proxy does, however that ended. Its output is
a line of JSON for each thing that happens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.process_group import ProcessGroup, answers, free_port
from serve.ab.config import ArmConfig, Config, Restart

HOST = "127.0.0.1"
SERVE = (sys.executable, "-P", "-m", "serve.cli")
KEY_VARIABLE = "VLLM_API_KEY"
OURS = ("--model", "--plan", "--draft", "--host", "--port", "--served-model-name", "--api-key")
PROBE_S = 1.0
PROBE_TIMEOUT_S = 5.0
YOUNG_S = 60.0


class EngineSpec(Record):
    """The engine of one arm. command: all but the port. key: what it asks of its callers.

    The key keeps others on this machine from using the engine past the proxy.
    """

    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    key: str
    log: Path


class Specs(Record):
    """The engines to run. again: they ran before, so that one that does not start is tried again and ends nothing."""

    engines: tuple[EngineSpec, ...]
    restart: Restart
    again: bool = False


LOGS_REQUESTS = ("--disable-uvicorn-access-log", "--no-disable-uvicorn-access-log", "--uvicorn-log-level")
LOOK_SECONDS = 30.0


def command_of(arm: ArmConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return the engine's command. It serves under the experiment's names, so that an answer's bytes need no change."""
    words = [*SERVE, "--model", model_of(arm), *(("--plan", str(arm.plan)) if arm.plan else ())]
    if not any(flag.replace("_", "-").startswith(LOGS_REQUESTS) for flag in arm.flags):
        words.append("--disable-uvicorn-access-log")  # a line a request, for months; ours is the proxy's
    return (*words, "--host", HOST, "--served-model-name", *names, *arm.flags)


def model_of(arm: ArmConfig) -> str:
    """Return the folder or hub id that is opened: the arm's model, else the one that its plan was made for."""
    if arm.model is not None:
        return arm.model
    from mi_prun.plan.plan import Plan

    if arm.plan is None:
        raise UserError("the arm has a URL: nothing is opened for it")
    return Plan.read(arm.plan).dense.name


def adapter_file_of(arm: ArmConfig) -> Path | None:
    """Return the file of what was healed that the arm's flags name, as `mi-prun-serve` reads them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, nargs="?")
    adapter: Path | None = parser.parse_known_args(arm.flags)[0].adapter
    return adapter


def check_engines(config: Config) -> None:
    """Check all models and plans before the first engine is started. Raises UserError."""
    from mi_prun.plan.plan import Plan
    from serve.cli import vllm_flag
    from serve.served_model import planned_model, served_model

    for name, arm in config.arms.items():
        if not arm.managed:
            continue
        words = [flag.partition("=")[0].replace("_", "-") for flag in arm.flags if flag.startswith("--")]
        for word in words:
            if word in OURS:
                raise UserError(f"arm {name}: {word} is set by mi-prun-ab itself")
        try:
            model = model_of(arm)
            if arm.plan is None:
                served_model(model, dummy=vllm_flag(list(arm.flags), "--load-format") == "dummy")
            elif Path(model).exists():
                with tempfile.TemporaryDirectory(prefix="mi-prun-ab-") as scratch:
                    planned_model(
                        model,
                        arm.plan,
                        Path(scratch),
                        adapter=adapter_file_of(arm),
                        assume_uniform="--assume-uniform" in words,
                    )
            else:
                Plan.read(arm.plan)
        except UserError as error:
            raise UserError(f"arm {name}: {error}") from error


class SupervisedEngine:
    """An engine: its process group, and when to start it again."""

    def __init__(self, spec: EngineSpec, restart: Restart) -> None:
        self.spec = spec
        self.url = ""
        self.due = 0.0
        self.up = False
        self._restart = restart
        self._group: ProcessGroup | None = None
        self._lock = threading.Lock()
        self._stopping = False
        self._since = 0.0
        self._deaf_since: float | None = None
        self._back_off_s = restart.back_off_s

    def start(self) -> None:
        """Start it, and wait until it is ready. Raises UserError where it does not become so."""
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        with self._lock:
            if self._stopping:
                raise UserError("stopped before it was started")
            if self.spec.log.exists():
                self.spec.log.replace(self.spec.log.with_suffix(".before.log"))
            env = {**self.spec.env, KEY_VARIABLE: self.spec.key}
            self._group = ProcessGroup([*self.spec.command, "--port", str(port)], self.spec.log, env)
        self._group.wait_ready(f"{self.url}/health", timeout_seconds=self._restart.startup_s)
        self._group.sample_seconds = LOOK_SECONDS  # all its processes are there, and nobody reads their peak memory
        self._since, self._deaf_since = time.monotonic(), None
        self.up = True

    def ended(self) -> str | None:
        """Return why it counts as ended; None while it serves.

        One that has been deaf for hang_s is as good as dead. The time counts from the first question in vain, as nobody
        asks while another engine starts.
        """
        group = self._group
        if group is None:
            return "it was not started"
        if (status := group.process.poll()) is not None:
            return f"it ended with status {status}: {group.last_lines()}"
        asked = time.monotonic()
        if answers(f"{self.url}/health", PROBE_TIMEOUT_S):
            self._deaf_since = None
        elif self._deaf_since is None:
            self._deaf_since = asked
        elif time.monotonic() - self._deaf_since > self._restart.hang_s:
            return f"it has not answered for {self._restart.hang_s:.0f} s"
        return None

    def stop(self, *, for_good: bool = False) -> None:
        with self._lock:
            self._stopping = self._stopping or for_good
            group = self._group
        self.up = False
        if group is not None:
            group.stop(self._restart.end_s)

    def next_start(self) -> float:
        """Set when it is started next, and return the seconds until then: more each time that it ended young."""
        if time.monotonic() - self._since > YOUNG_S and self._since:
            self._back_off_s = self._restart.back_off_s
        wait_s, self._back_off_s = self._back_off_s, min(2 * self._back_off_s, self._restart.back_off_max_s)
        self.due, self._since = time.monotonic() + wait_s, 0.0
        return wait_s


class Supervisor:
    """The engines while they run: `run` until `stop`. say: is told what happens, as `{"event": ..., "arm": ..., ...}`.

    Engines start one at a time, restarts too: vLLM measures the device's free memory while it starts.
    """

    def __init__(self, specs: Specs, say: Callable[[dict[str, Any]], None]) -> None:
        self.engines = [SupervisedEngine(spec, specs.restart) for spec in specs.engines]
        self._otherwise = "down" if specs.again else "failed"
        self._say = say
        self._stopping = threading.Event()

    def run(self) -> None:
        for engine in self.engines:
            if not self._start(engine, self._otherwise) and self._otherwise == "failed":
                return
        self._say({"event": "ready"})
        while not self._stopping.wait(PROBE_S):
            for engine in self.engines:
                self._watch(engine)

    def stop(self) -> None:
        self._stopping.set()
        enders = [threading.Thread(target=engine.stop, kwargs={"for_good": True}) for engine in self.engines]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()

    def _watch(self, engine: SupervisedEngine) -> None:
        if engine.up and (why := engine.ended()) is not None and not self._stopping.is_set():
            self._down(engine, why)
        if not engine.up and time.monotonic() >= engine.due and not self._stopping.is_set():
            self._start(engine, "down")

    def _down(self, engine: SupervisedEngine, why: str) -> None:
        engine.stop()
        wait_s = engine.next_start()
        self._say({"event": "down", "arm": engine.spec.name, "why": f"{why}; next start in {wait_s:.0f} s"})

    def _start(self, engine: SupervisedEngine, otherwise: str) -> bool:
        self._say({"event": "starting", "arm": engine.spec.name})
        try:
            engine.start()
        except (UserError, OSError) as error:
            if not self._stopping.is_set():
                if otherwise == "failed":
                    self._say({"event": "failed", "arm": engine.spec.name, "why": str(error)})
                else:
                    self._down(engine, str(error))
            return False
        self._say({"event": "up", "arm": engine.spec.name, "url": engine.url})
        return True


def main(arguments: Sequence[str] = ()) -> None:
    """Run the supervisor. Engines are started by the main thread: the kernel ends them with it."""
    specs = Specs.model_validate_json(sys.stdin.buffer.readline())
    output = sys.stdout

    def say(event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            output.write(json.dumps(event) + "\n")
            output.flush()

    supervisor = Supervisor(specs, say)
    stopper = threading.Thread(target=_stop_at_the_end, args=(supervisor, _ended_by_signal()), daemon=True)
    stopper.start()
    supervisor.run()
    supervisor.stop()
    stopper.join(0.1)


def _ended_by_signal() -> int:
    """Return a file descriptor that can be read once SIGTERM or SIGINT came."""
    read, write = os.pipe()

    def note(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(write, b"x")

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, note)
    return read


def _stop_at_the_end(supervisor: Supervisor, signalled: int) -> None:
    select.select([sys.stdin.fileno(), signalled], [], [])
    supervisor.stop()


if __name__ == "__main__":
    main()
