"""The proxy's end of the supervisor: that process is started, listened to, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from mi_prun.errors import UserError
from serve.ab.arms.arm import Arm
from serve.ab.arms.supervisor import KEY_VARIABLE, YOUNG_S, EngineSpec, Specs, command_of
from serve.ab.config import Config

logger = logging.getLogger("mi_prun_ab")
END_S = 60.0


class SupervisorClient:
    """The process that runs the engines, as the proxy sees it: `with SupervisorClient(config, arms, folder) as client`.

    Every arm without a URL gets an engine, which is ready when `start` returns; none is left at the end. folder: where
    the engines' output goes.
    """

    def __init__(self, config: Config, arms: Mapping[str, Arm], folder: Path) -> None:
        self.arms = arms
        self.folder = folder
        self._specs = Specs(
            engines=tuple(
                EngineSpec(
                    name=name,
                    command=command_of(arm, config.names),
                    env=arm.env,
                    key=secrets.token_urlsafe(24),
                    log=folder / f"{name}.log",
                )
                for name, arm in config.arms.items()
                if arm.managed
            ),
            restart=config.restart,
        )
        self._keys = {spec.name: spec.key for spec in self._specs.engines}
        self._secrets = config.key_variables
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._was_ready = False
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._apply: Callable[[dict[str, Any]], None] = self._events.put

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the engines, and wait until all are ready. Raises UserError with what the first that fails has said."""
        if not self._specs.engines:
            return
        process = self._run(self._specs)
        assert process is not None
        self._thread = threading.Thread(target=self._look_after, args=(process,), daemon=True)
        self._thread.start()
        while (event := self._events.get()) is not None:
            self._note(event)
            if event["event"] == "failed":
                raise UserError(f"the engine of arm {event['arm']} did not start: {event['why']}")
            if event["event"] == "ready":
                return
        raise UserError("the process that runs the engines ended; see what it said above")

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell arms of changes in the loop that they serve in, from now on."""

        def apply(event: dict[str, Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._note, event)

        self._apply = apply

    def stop(self) -> None:
        """End the process and its engines, by the end of its input. It may be called twice."""
        with self._lock:
            self._stopping.set()
            process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        if self._thread is not None:
            self._thread.join(END_S)

    def _run(self, specs: Specs) -> subprocess.Popen[bytes] | None:
        """Start the process; return None where all has been told to end."""
        with self._lock:
            if self._stopping.is_set():
                return None
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "serve.ab.arms.supervisor"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the proxy, which lets requests end before it ends engines
                # Keys of the proxy and of other arms are no business of an engine, nor of a model's own code in it.
                env={name: value for name, value in os.environ.items() if name not in self._secrets},
            )
            self._process = process
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already: its output says so
            process.stdin.write(specs.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        return process

    def _look_after(self, process: subprocess.Popen[bytes]) -> None:
        """Start the process and its engines anew where it dies after it was ready, as an engine would be."""
        again = self._specs.model_copy(update={"again": True})
        back_off_s = self._specs.restart.back_off_s
        while True:
            since = time.monotonic()
            self._listen(process)
            if not self._was_ready or self._stopping.is_set():
                self._events.put(None)
                return
            if time.monotonic() - since > YOUNG_S:
                back_off_s = self._specs.restart.back_off_s
            why = f"what ran the engines ended with status {process.wait()}; next start in {back_off_s:.0f} s"
            for spec in self._specs.engines:
                self._apply({"event": "down", "arm": spec.name, "why": why})
            self._end_what_it_left()
            if self._stopping.wait(back_off_s) or (started := self._run(again)) is None:
                return
            process = started
            back_off_s = min(2 * back_off_s, self._specs.restart.back_off_max_s)

    def _end_what_it_left(self) -> None:
        """End engines that outlive it. The kernel tells them to; one that is deaf would keep the device's memory."""
        left = [process for process in psutil.process_iter() if self._is_engine(process)]
        for process in psutil.wait_procs(left, self._specs.restart.end_s)[1]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _is_engine(self, process: psutil.Process) -> bool:
        """Return whether a process is an engine or descends from one: its key is in the environment."""
        try:
            return process.environ().get(KEY_VARIABLE) in self._keys.values()
        except (psutil.Error, OSError):
            return False

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            self._was_ready = self._was_ready or event["event"] == "ready"
            self._apply(event)

    def _note(self, event: dict[str, Any]) -> None:
        name = event.get("arm")
        if name is None:
            return
        arm = self.arms[name]
        what = event["event"]
        if what == "up":
            arm.restarts += arm.base_url is None and arm.ever_up
            arm.came_up(event["url"], self._keys[name])
            logger.info("arm %s is up at %s", name, event["url"])
        elif what == "starting":
            logger.info("arm %s is starting; its output: %s", name, self.folder / f"{name}.log")
        else:
            arm.base_url = None
            arm.went_down()
            logger.warning("arm %s is down: %s", name, event["why"])
