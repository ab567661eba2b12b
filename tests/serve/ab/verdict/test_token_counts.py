"""Arms whose tokens are counted in different ways: said, and not compared in what depends on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from serve.ab.verdict.collector import EventCollector
from serve.ab.verdict.event import Event
from serve.ab.verdict.schema import Verdict
from serve.ab.verdict.token_counts import LEAST_ANSWERS, TokenCounts

HALVES = {"dense": 50.0, "pruned": 50.0}
Observed = Callable[..., Event]


def verdict_of(
    observed: Observed, count: int = 200, guardrails: tuple[str, ...] = (), **arms: dict[str, Any]
) -> tuple[Verdict, set[str]]:
    """Of so many answers of each arm, whose fields are given; and the quantities that are not compared."""
    drained: list[str] = []

    def drain(arm: str, reason: str) -> bool:
        drained.append(arm)
        return True

    collector = EventCollector("trial", "dense", HALVES, guardrails=guardrails, drain=drain)
    for _ in range(count):
        for arm, fields in arms.items():
            collector.observe(observed(arm, **fields))
    assert not drained
    state = collector.state()
    other = EventCollector("trial", "dense", HALVES, guardrails=guardrails)
    other.restore(state)
    assert other.aggregates.incomparable("pruned") == collector.aggregates.incomparable("pruned")
    return collector.verdict(), set(collector.aggregates.incomparable("pruned"))


USAGE = {"usage": True, "stream_events": 20, "output_tokens": 20}
BY_EVENTS = {"usage": False, "stream_events": 20, "output_tokens": 20}


@pytest.mark.parametrize("fields", [USAGE, BY_EVENTS])
def test_arms_that_count_alike_are_compared(observed: Observed, fields: dict[str, Any]) -> None:
    verdict, incomparable = verdict_of(observed, dense=fields, pruned=fields)
    (comparison,) = verdict.comparisons
    assert incomparable == set()
    assert comparison.differences["tokens_per_s"].difference == 0
    assert verdict.notes == []


def test_answers_that_are_not_streamed_are_compared_and_lack_the_figure_of_the_sample_size(observed: Observed) -> None:
    fields = {"streamed": False, "usage": True}
    verdict, incomparable = verdict_of(observed, dense=fields, pruned=fields)
    (comparison,) = verdict.comparisons
    assert incomparable == set()
    assert comparison.differences["e2e_ms"].direction == "no different"
    assert comparison.text.endswith("n=0, too few to say how many are needed")
    (note,) = verdict.notes
    assert re.fullmatch(r"none of the [0-9]+ answers of pruned has a ttft_ms .* set figure = \"e2e_ms\" in .*", note)


def test_usage_beside_events_is_said_and_not_compared(observed: Observed) -> None:
    """Five tokens an event: the arm that gives no usage seems five times as slow, and is no slower."""
    batched = {"usage": False, "stream_events": 4, "output_tokens": 4}
    verdict, incomparable = verdict_of(
        observed,
        guardrails=("tokens_per_s>0.9x", "output_tokens>0.9x"),
        dense={"usage": True, "stream_events": 0, "output_tokens": 20},
        pruned=batched,
    )
    (comparison,) = verdict.comparisons
    assert incomparable == {"tokens_per_s", "output_tokens"}
    assert comparison.differences["tokens_per_s"].direction == "unknown"
    assert "tokens/s cannot be compared" in comparison.text
    assert "ITL cannot be compared" not in comparison.text
    assert [figure.standing for figure in comparison.guardrails] == ["undecided", "undecided"]
    (note,) = verdict.notes
    assert note == (
        "pruned and dense cannot be compared in tokens/s and output length: the tokens of 100% of its answers and of "
        "0% of the control's are counted by events, as the engine gave no usage"
    )


def test_where_an_event_is_a_token_both_ways_count_alike(observed: Observed) -> None:
    fields = [USAGE] * 3 + [BY_EVENTS]
    collector = EventCollector("trial", "dense", HALVES)
    for number in range(200):
        collector.observe(observed("dense", **USAGE))
        collector.observe(observed("pruned", **fields[number % 4]))
    assert collector.aggregates.arms["pruned"].token_counts.share_by_events == 0.25
    assert collector.aggregates.incomparable("pruned") == {}


def test_events_of_several_tokens_are_no_gaps_between_tokens(observed: Observed) -> None:
    verdict, incomparable = verdict_of(observed, dense=USAGE, pruned=USAGE | {"stream_events": 8})
    (comparison,) = verdict.comparisons
    assert incomparable == {"itl_ms"}  # tokens are counted by usage in both
    assert comparison.differences["tokens_per_s"].direction == "no different"
    assert verdict.notes == [
        "pruned and dense cannot be compared in ITL: an event of its streams holds 2.5 tokens, one of the control's 1"
    ]


def test_nothing_is_said_of_a_few_answers(observed: Observed) -> None:
    assert verdict_of(observed, LEAST_ANSWERS - 1, dense=USAGE, pruned=BY_EVENTS)[1] == set()


def test_what_failed_counts_no_tokens(observed: Observed) -> None:
    counts = TokenCounts()
    counts.add(observed(outcome="disconnected", usage=False, stream_events=3, output_tokens=3))
    counts.add(observed(streamed=False, output_tokens=None))
    assert counts == TokenCounts()
