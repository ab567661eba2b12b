"""What a GPU says, by a driver's library that stands in for one: this is how NVIDIA's answers, and how it refuses."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bench.engines.device import Device


class NVMLError(Exception):
    pass


def driver(**answers: Any) -> ModuleType:
    """Two GPUs, the second with twice of everything; `answers` take the place of a function, or are raised."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = NVMLError
    functions: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index + 1,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}0ff",
        "nvmlDeviceGetHandleByUUID": lambda uuid: int(uuid.removeprefix("MIG-")),
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 1500 * handle,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=100 * handle, free=10 * handle),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
            SimpleNamespace(pid=7, usedGpuMemory=40 * handle),
            SimpleNamespace(pid=8, usedGpuMemory=None),
            SimpleNamespace(pid=9, usedGpuMemory=5),
        ],
    }

    def refusing(error: Exception) -> Any:
        def refuse(*arguments: Any) -> None:
            raise error

        return refuse

    for name, function in (functions | answers).items():
        setattr(module, name, refusing(function) if isinstance(function, Exception) else function)
    return module


def test_energy_and_memory_of_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver())
    device = Device()
    assert device.energy_j() == 4.5  # the library counts millijoules
    assert (device.total_bytes(), device.free_bytes()) == (300, 30)
    assert device.used_bytes([7, 8]) == 120
    assert device.used_bytes([1]) is None  # a container of other process ids


@pytest.mark.parametrize(
    ("told", "gpus", "total"),
    [
        ("0", None, 100),
        ("1", None, 200),
        ("1,0", 1, 200),  # an engine takes the first ones
        ("GPU-20", None, 200),
        ("MIG-5", None, 500),
        ("0,7,1", None, 100),  # what CUDA does not know ends the list
        (None, 1, 100),
        ("", None, None),
    ],
)
def test_only_the_gpus_that_an_engine_would_take_count(
    monkeypatch: pytest.MonkeyPatch, told: str | None, gpus: int | None, total: int | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if told is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert Device().total_bytes(gpus) == total
    assert Device().free_bytes(gpus) == (None if total is None else total // 10)


def test_a_gpu_that_does_not_count_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(nvmlDeviceGetTotalEnergyConsumption=NVMLError("Not Supported")))
    device = Device()
    assert device.energy_j() is None
    assert device.total_bytes() == 300


@pytest.mark.parametrize("module", [None, driver(nvmlInit=NVMLError("Driver Not Loaded"))])
def test_without_a_gpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    device = Device()
    assert device.energy_j() is device.total_bytes() is device.free_bytes() is device.used_bytes([7]) is None
