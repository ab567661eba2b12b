"""Read energy and memory of the GPUs from NVIDIA's management library. Without a GPU there is nothing to read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any


class Device:
    """The visible GPUs of this machine. The driver is asked, so that this process takes nothing on a GPU."""

    def __init__(self) -> None:
        self._library: Any = None
        self._handles: list[Any] = []
        with contextlib.suppress(Exception):  # no library, no driver, no GPU
            import pynvml

            pynvml.nvmlInit()
            self._handles = visible(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
            self._library = pynvml

    def energy_j(self) -> float | None:
        """Return the joules that all visible GPUs used since the driver was loaded; None where one does not say."""
        return self._sum(lambda handle: self._library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)

    def free_bytes(self, gpus: int | None = None) -> int | None:
        """Return the free bytes of the first `gpus` GPUs, which are those that an engine takes. None: of all."""
        free = self._sum(lambda handle: self._library.nvmlDeviceGetMemoryInfo(handle).free, gpus)
        return None if free is None else int(free)

    def total_bytes(self, gpus: int | None = None) -> int | None:
        """Return the bytes of the first `gpus` GPUs. None: of all."""
        total = self._sum(lambda handle: self._library.nvmlDeviceGetMemoryInfo(handle).total, gpus)
        return None if total is None else int(total)

    def used_bytes(self, pids: Iterable[int]) -> int | None:
        """Return the bytes that these processes take on the GPUs.

        None where the driver names none of them. A container may have process ids of its own.
        """
        wanted = set(pids)

        def used(handle: Any) -> float:
            running = self._library.nvmlDeviceGetComputeRunningProcesses(handle)
            return float(sum(one.usedGpuMemory or 0 for one in running if one.pid in wanted))

        return int(on_gpus) if (on_gpus := self._sum(used)) else None

    def _sum(self, of: Any, gpus: int | None = None) -> float | None:
        if not self._handles:
            return None
        try:
            return float(sum(of(handle) for handle in self._handles[:gpus]))
        except self._library.NVMLError:
            return None


def visible(library: Any, told: str | None) -> list[Any]:
    """Return handles of the GPUs that CUDA_VISIBLE_DEVICES names, in its order; all GPUs where it is not set.

    GPUs are named by index, or by a UUID or its beginning. A name that is not known ends the list, as in CUDA.
    """
    everyone = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
    if told is None:
        return everyone
    handles = []
    for word in (word.strip() for word in told.split(",")):
        if word.startswith("MIG-"):
            named = [library.nvmlDeviceGetHandleByUUID(word)]
        elif word.isdecimal():
            named = everyone[int(word) : int(word) + 1]
        else:
            named = [handle for handle in everyone if word and library.nvmlDeviceGetUUID(handle).startswith(word)]
        if len(named) != 1:
            break
        handles += named
    return handles
