"""Items come out in the order of assignment, each once, whatever order they end in; the wait is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.ab.verdict import assignment_order
from serve.ab.verdict.assignment_order import WAIT_S, AssignmentOrder


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_each_comes_out_once_and_in_order(ends: Sequence[int], empty: set[int]) -> None:
    order: AssignmentOrder[int] = AssignmentOrder()
    for sequence in range(12):
        order.begin(sequence)
    out: list[int] = []
    ended: set[int] = set()
    for sequence in ends:
        out += order.end(sequence, None if sequence in empty else sequence)
        ended.add(sequence)
        first_open = min(set(range(12)) - ended, default=12)
        assert out == [number for number in range(first_open) if number not in empty]
        assert order.waiting == len([number for number in ended if number > first_open])
    assert out == sorted(set(range(12)) - empty)


def test_what_is_unknown_or_ended_already_gives_nothing() -> None:
    order: AssignmentOrder[str] = AssignmentOrder()
    order.begin(1)
    order.begin(2)
    assert order.end(7, "unknown") == []
    assert order.end(2, "two") == []
    assert order.end(2, "two again") == []
    assert order.end(1, "one") == ["one", "two"]
    assert order.end(1, "one again") == []


def test_a_request_that_takes_too_long_is_overtaken_and_counts_when_it_ends(clock: Any) -> None:
    order: AssignmentOrder[str] = AssignmentOrder(clock)
    order.begin(1)
    clock.now = WAIT_S / 2
    for sequence in (2, 3, 4):
        order.begin(sequence)
    assert order.end(2, "two") == []
    assert order.oldest_s == WAIT_S / 2
    clock.now = WAIT_S + 1
    assert order.end(4, "four") == ["two"]  # 3 is young enough
    assert order.end(1, "one") == ["one"]
    assert order.end(3, "three") == ["three", "four"]
    assert (order.waiting, order.oldest_s) == (0, 0.0)


def test_what_waits_takes_no_more_room_than_there_is(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    monkeypatch.setattr(assignment_order, "ROOM_BYTES", 10_000)
    order: AssignmentOrder[int] = AssignmentOrder(clock)
    for sequence in range(101):
        order.begin(sequence)
    out: list[int] = []
    for sequence in range(1, 101):
        out += order.end(sequence, sequence, 1000)
        assert order.waiting <= 8
    assert out == list(range(1, 101))
    assert order.end(0, 0) == [0]
