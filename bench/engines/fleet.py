"""Keep the engines of a sweep: alive side by side, or one at a time and started anew.

Side by side, one engine is loaded while the others idle. An idle vLLM engine takes about 1 % of a core, so they disturb
each other little, and the two rounds of a pair lie seconds apart. Where memory is too small for that, a pair lies a
start-up apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Self

from bench.engines.device import Device
from bench.engines.engine import EngineProcess, running
from bench.models.measured_model import MeasuredModel
from bench.settings import Alive
from mi_prun.console import say


class Fleet:
    """The engines of a run. An engine is started when it is first asked for.

    `with Fleet(...) as fleet:` leaves no process of them at its end.
    """

    def __init__(self, flags: Sequence[str], alive: Alive, device: Device) -> None:
        self._flags = flags
        self._alive = alive
        self._device = device
        self._engines: dict[str, tuple[EngineProcess, contextlib.ExitStack]] = {}
        self._peak_device_bytes: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop all engines."""
        with contextlib.ExitStack() as all_of_them:
            for _, stack in self._engines.values():
                all_of_them.push(stack.__exit__)
            self._engines.clear()

    def engine(self, model: MeasuredModel) -> EngineProcess:
        """Return the engine of a model; start it if it is not alive."""
        label = model.arm.label
        if label in self._engines:
            return self._engines[label][0]
        if self._alive == "alone":
            self.stop()
        say(f"{label} ({model.arm.model}): starting")
        with contextlib.ExitStack() as stack:
            engine = stack.enter_context(running(model.arm.model, [*self._flags, *model.flags]))
            self._engines[label] = (engine, stack.pop_all())
        say(f"{label}: ready after {engine.startup_s:.0f} s")
        return engine

    def peak_device_bytes(self, model: MeasuredModel) -> int | None:
        """Return the most that a model's processes have been seen to take on the GPU, now and at earlier calls."""
        label = model.arm.label
        pids = [process.pid for process in self._engines[label][0].group.processes()]
        used = self._device.used_bytes(pids)
        if used is not None:
            self._peak_device_bytes[label] = max(used, self._peak_device_bytes.get(label, 0))
        return self._peak_device_bytes.get(label)
