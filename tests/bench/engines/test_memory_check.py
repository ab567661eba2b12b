"""What the engines need, and whether that much is free: stand-ins for the machine's memory and its GPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.engines import memory_check
from bench.engines.memory_check import GIB, PROCESS_BYTES, engines_alive, room
from mi_prun.errors import UserError


class Gpus:
    """Stands for the GPUs of a machine, by their bytes; a tenth of each is free. No GPU: nothing is said."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def total_bytes(self, gpus: int | None = None) -> int | None:
        return sum(self.sizes[:gpus]) if self.sizes else None

    def free_bytes(self, gpus: int | None = None) -> int | None:
        return sum(self.sizes[:gpus]) // 10 if self.sizes else None


def a_model(weight_bytes: float, kind: str = "pruned", label: str = "hybrid 25.0%") -> Any:
    return SimpleNamespace(weight_bytes=int(weight_bytes), arm=SimpleNamespace(kind=kind, label=label))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`free(gib)`: so much of the machine's memory is free. The KV cache is as large as the default."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)

    def set_free(gib: float) -> None:
        memory = SimpleNamespace(available=int(gib * GIB))
        monkeypatch.setattr(memory_check.psutil, "virtual_memory", lambda: memory)

    return set_free


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        ((), 90),
        (("-tp", "2"), 270),
        (("--tensor_parallel_size=2", "--gpu-memory-utilization", ".5"), 150),
        (("-tp", "many"), 90),  # vLLM refuses it
    ],
)
def test_an_engine_takes_its_share_of_its_own_gpus(flags: tuple[str, ...], needed: int) -> None:
    free = 30 if "2" in " ".join(flags) else 10
    assert room([a_model(50)], flags, Gpus(100, 200)) == (free, [needed])  # type: ignore[arg-type]


def test_all_kinds_of_parallelism_take_gpus() -> None:
    flags = ("-tp", "2", "-pp", "2", "--data-parallel-size=2")
    assert room([a_model(50)], flags, Gpus(*[100] * 9)) == (80, [720])  # type: ignore[arg-type]


def test_weights_that_are_larger_than_the_share_count_in_full() -> None:
    assert room([a_model(50), a_model(95)], (), Gpus(100)) == (10, [90, 95])  # type: ignore[arg-type]


@pytest.mark.parametrize(("said", "kv_gib"), [(None, 2), ("", 2), ("0.5", 0.5), ("4", 4), ("much", 2)])
def test_on_cpu_an_engine_takes_its_weights_its_kv_cache_and_its_processes(
    free: Any, monkeypatch: pytest.MonkeyPatch, said: str | None, kv_gib: float
) -> None:
    free(7)
    if said is not None:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", said)
    models = [a_model(3 * GIB, "dense"), a_model(3 * GIB, "draft")]
    plain = 3 * GIB + kv_gib * GIB + PROCESS_BYTES
    # A drafting engine has a KV cache for the draft too. The share of a GPU says nothing here.
    flags = ("--gpu-memory-utilization", ".1")
    assert room(models, flags, Gpus()) == (7 * GIB, [plain, plain + kv_gib * GIB])  # type: ignore[arg-type]


def test_engines_are_together_where_all_fit(free: Any) -> None:
    """Each takes 1 + 2 + 1.5 GiB."""
    models, none = [a_model(GIB)] * 2, Gpus()
    for gib, asked, alive in (
        (9, None, "together"),
        (9, "together", "together"),
        (9, "alone", "alone"),
        (8.9, None, "alone"),
        (4.5, None, "alone"),
        (4.5, "alone", "alone"),
    ):
        free(gib)
        assert engines_alive(models, (), asked, none) == alive  # type: ignore[arg-type]


def test_too_little_memory_is_said_with_the_way_out(free: Any) -> None:
    models = [a_model(GIB), a_model(2 * GIB, "dense", "dense")]
    free(8)
    with pytest.raises(
        UserError, match=r"together: 2 engines need about 10\.0 GiB, 8\.0 GiB are free; .* fewer ratios"
    ):
        engines_alive(models, (), "together", Gpus())  # type: ignore[arg-type]
    free(5)
    said = r"memory for dense: its weights \(2\.00 GiB\).* 5\.5 GiB, 5\.0 GiB are free; .*_CPU_KVCACHE_SPACE$"
    for asked in (None, "alone", "together"):
        with pytest.raises(UserError, match=said):
            engines_alive(models, (), asked, Gpus())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"or lower --gpu-memory-utilization$"):
        engines_alive([a_model(GIB)], (), None, Gpus(80 * GIB))  # type: ignore[arg-type]
