"""What the GPUs say of energy and memory, through NVIDIA's management library; nothing where there is none."""

from __future__ import annotations

import contextlib
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
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            self._library = pynvml

    def energy_j(self) -> float | None:
        """Of all GPUs since the driver was loaded; None where one does not say."""
        return self._sum(lambda handle: self._library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)

    def free_bytes(self) -> int | None:
        found = self._sum(lambda handle: self._library.nvmlDeviceGetMemoryInfo(handle).free)
        return None if found is None else int(found)

    def total_bytes(self) -> int | None:
        found = self._sum(lambda handle: self._library.nvmlDeviceGetMemoryInfo(handle).total)
        return None if found is None else int(found)

    def used_bytes(self, pids: Iterable[int]) -> int | None:
        """Of these processes; None where the driver names none of them, as in a container of other process ids."""
        wanted = set(pids)

        def used(handle: Any) -> float:
            running = self._library.nvmlDeviceGetComputeRunningProcesses(handle)
            return float(sum(one.usedGpuMemory or 0 for one in running if one.pid in wanted))

        return int(found) if (found := self._sum(used)) else None

    def _sum(self, of: Any) -> float | None:
        if not self._handles:
            return None
        try:
            return float(sum(of(handle) for handle in self._handles))
        except self._library.NVMLError:
            return None
