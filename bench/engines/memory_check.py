"""Say whether the engines fit in memory, before one is started: by the headers of the weights and the KV cache's
setting.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import psutil

from bench.engines.device import Device
from bench.engines.flags import flag_value
from bench.models.measured_model import MeasuredModel
from bench.settings import Alive
from mi_prun.errors import UserError

CPU_KV_GIB = "VLLM_CPU_KVCACHE_SPACE"
DEFAULT_CPU_KV_GIB = 2.0  # what mi-prun-serve sets where the user does not
PROCESS_BYTES = int(1.5 * 2**30)  # an engine's processes on CPU, before weights and KV cache
SHARE_FLAG = "--gpu-memory-utilization"
DEFAULT_SHARE = 0.9
PARALLEL = (("--tensor-parallel-size", "-tp"), ("--pipeline-parallel-size", "-pp"), ("--data-parallel-size", "-dp"))
GIB = 2**30


def engines_alive(models: Sequence[MeasuredModel], flags: Sequence[str], asked: Alive | None, device: Device) -> Alive:
    """Return `together` where all engines fit side by side, else `alone`. Raises UserError where not even one fits."""
    available, needed = room(models, flags, device)
    worst = max(range(len(models)), key=lambda index: needed[index])
    if needed[worst] > available:
        model = models[worst]
        raise UserError(
            f"too little memory for {model.arm.label}: its weights ({model.weight_bytes / GIB:.2f} GiB), KV cache "
            f"and processes need about {needed[worst] / GIB:.1f} GiB, {available / GIB:.1f} GiB are free; free some, "
            f"or lower {CPU_KV_GIB if device.total_bytes() is None else SHARE_FLAG}"
        )
    fits = sum(needed) <= available
    if asked == "together" and not fits:
        raise UserError(
            f"--engines together: {len(models)} engines need about {sum(needed) / GIB:.1f} GiB, "
            f"{available / GIB:.1f} GiB are free; take --engines alone, or fewer ratios"
        )
    return asked or ("together" if fits else "alone")


def room(models: Sequence[MeasuredModel], flags: Sequence[str], device: Device) -> tuple[int, list[int]]:
    """Return the bytes that are free, and the bytes that each engine takes."""
    gpus = math.prod(int(_number(flag_value(flags, long) or flag_value(flags, short), 1)) for long, short in PARALLEL)
    total = device.total_bytes(gpus)
    if total is None:
        kv_bytes = int(_number(os.environ.get(CPU_KV_GIB), DEFAULT_CPU_KV_GIB) * GIB)
        kv_caches = [2 if model.arm.kind == "draft" else 1 for model in models]
        needed = [s.weight_bytes + kv_bytes * n + PROCESS_BYTES for s, n in zip(models, kv_caches, strict=True)]
        return psutil.virtual_memory().available, needed
    # vLLM takes its share whatever the model's size.
    reserved = int(_number(flag_value(flags, SHARE_FLAG), DEFAULT_SHARE) * total)
    return device.free_bytes(gpus) or 0, [max(reserved, model.weight_bytes) for model in models]


def _number(text: str | None, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        return default
