"""The proxy's end of the process that runs the engines: it is started, listened to, and ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mi_prun.errors import UserError
from serve.ab.arm import Arm
from serve.ab.config import Config
from serve.ab.engine import EngineSpec, Specs, command_of

logger = logging.getLogger("mi_prun_ab")
END_S = 60.0


class Engines:
    """`with Engines(config, arms, folder) as engines`: every arm without a URL gets an engine, ready when `start`
    returns; none is left at the end. folder: where their output goes.
    """

    def __init__(self, config: Config, arms: Mapping[str, Arm], folder: Path) -> None:
        self.arms = arms
        self.folder = folder
        self._specs = Specs(
            engines=tuple(
                EngineSpec(
                    name=name,
                    command=command_of(arm, config.model_name),
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
        self._process: subprocess.Popen[bytes] | None = None
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._apply: Callable[[dict[str, Any]], None] = self._events.put

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Until all are ready. Raises UserError with what the first that fails has said."""
        if not self._specs.engines:
            return
        process = subprocess.Popen(
            [sys.executable, "-m", "serve.ab.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the proxy, which lets requests end before it ends engines
            env={**os.environ},
        )
        self._process = process
        assert process.stdin is not None
        process.stdin.write(self._specs.model_dump_json().encode() + b"\n")
        process.stdin.flush()
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        while (event := self._events.get()) is not None:
            self._note(event)
            if event["event"] == "failed":
                raise UserError(f"the engine of arm {event['arm']} did not start: {event['why']}")
            if event["event"] == "ready":
                return
        raise UserError("the process that runs the engines ended; see what it said above")

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on arms are told in the loop that they serve in."""

        def apply(event: dict[str, Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._note, event)

        self._apply = apply

    def stop(self) -> None:
        """The end of its input is what it ends by. Safe to call twice."""
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

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._apply(json.loads(line))
        self._events.put(None)

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
