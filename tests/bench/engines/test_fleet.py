"""Engines side by side, or one at a time; none is left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bench.engines import fleet
from bench.engines.fleet import Fleet
from bench.settings import Alive


class GrowingDevice:
    """Stands for a GPU, whose driver cannot be told what to say: the next figure of `used` each time it is asked."""

    def __init__(self, used: Sequence[int | None]) -> None:
        self._used = list(used)

    def used_bytes(self, pids: Any) -> int | None:
        assert list(pids) == [7]
        return self._used.pop(0)


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are served, by the flags they were started with."""
    served: list[str] = []

    @contextlib.contextmanager
    def running(model: str, flags: Sequence[str] = ()) -> Iterator[Any]:
        if model == "broken":
            raise RuntimeError("does not start")
        name = " ".join((model, *flags))
        served.append(name)
        try:
            yield SimpleNamespace(startup_s=1.0, group=SimpleNamespace(processes=lambda: [SimpleNamespace(pid=7)]))
        finally:
            served.remove(name)

    monkeypatch.setattr(fleet, "running", running)
    return served


def a_model(label: str, *flags: str) -> Any:
    return SimpleNamespace(arm=SimpleNamespace(label=label, model=label), flags=flags)


@pytest.mark.parametrize(
    ("how", "served"), [("together", ["dense --x", "pruned --x --y"]), ("alone", ["pruned --x --y"])]
)
def test_how_many_are_alive(alive: list[str], how: Alive, served: list[str]) -> None:
    dense, pruned = a_model("dense"), a_model("pruned", "--y")
    with Fleet(("--x",), how, GrowingDevice([])) as engines:  # type: ignore[arg-type]
        first = engines.engine(dense)
        assert engines.engine(dense) is first
        engines.engine(pruned)
        assert alive == served
        engines.stop()
        assert alive == []
        assert engines.engine(dense) is not first
    assert alive == []


def test_none_is_left_after_a_failure(alive: list[str]) -> None:
    def use(engines: Fleet) -> None:
        engines.engine(a_model("dense"))
        engines.engine(a_model("broken"))

    with pytest.raises(RuntimeError, match="does not start"), Fleet((), "together", GrowingDevice([])) as engines:  # type: ignore[arg-type]
        use(engines)
    assert alive == []


def test_the_peak_is_the_most_that_was_seen(alive: list[str]) -> None:
    dense = a_model("dense")
    with Fleet((), "together", GrowingDevice([None, 5, 9, 3])) as engines:  # type: ignore[arg-type]
        engines.engine(dense)
        assert [engines.peak_device_bytes(dense) for _ in range(4)] == [None, 5, 9, 9]
