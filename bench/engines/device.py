"""What the GPUs say of energy and memory, through NVIDIA's management library; nothing where there is none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any


class Device:
    """Asked of the driver, so that this process takes nothing on a GPU."""

    def __init__(self) -> None:
        self._library: Any = None
        self._handles: list[Any] = []
        with contextlib.suppress(Exception):  # no library, no driver, no GPU
            import pynvml

            pynvml.nvmlInit()
            self._handles = visible(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
            self._library = pynvml

    def energy_j(self) -> float | None:
        """Of all visible GPUs since the driver was loaded; None where one does not say."""
        return self._sum(lambda handle: self._library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)

    def free_bytes(self, gpus: int | None = None) -> int | None:
        """Of the first `gpus` GPUs, which are those that an engine takes; None: of all."""
        found = self._sum(lambda handle: self._library.nvmlDeviceGetMemoryInfo(handle).free, gpus)
        return None if found is None else int(found)

    def total_bytes(self, gpus: int | None = None) -> int | None:
        found = self._sum(lambda handle: self._library.nvmlDeviceGetMemoryInfo(handle).total, gpus)
        return None if found is None else int(found)

    def used_bytes(self, pids: Iterable[int]) -> int | None:
        """Of these processes; None where the driver names none of them, as in a container of other process ids."""
        wanted = set(pids)

        def used(handle: Any) -> float:
            running = self._library.nvmlDeviceGetComputeRunningProcesses(handle)
            return float(sum(one.usedGpuMemory or 0 for one in running if one.pid in wanted))

        return int(found) if (found := self._sum(used)) else None

    def _sum(self, of: Any, gpus: int | None = None) -> float | None:
        if not self._handles:
            return None
        try:
            return float(sum(of(handle) for handle in self._handles[:gpus]))
        except self._library.NVMLError:
            return None


def visible(library: Any, told: str | None) -> list[Any]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES names, in its order, by index or by (the beginning of) a UUID; of
    all of them where it is not set. As in CUDA, what it does not know ends the list.
    """
    everyone = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
    if told is None:
        return everyone
    found = []
    for word in (word.strip() for word in told.split(",")):
        if word.startswith("MIG-"):
            named = [library.nvmlDeviceGetHandleByUUID(word)]
        elif word.isdecimal():
            named = everyone[int(word) : int(word) + 1]
        else:
            named = [handle for handle in everyone if word and library.nvmlDeviceGetUUID(handle).startswith(word)]
        if len(named) != 1:
            break
        found += named
    return found
