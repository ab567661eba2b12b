"""A score out of what lm-eval returns: bits by item, in the items' order; means of lm-eval's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.tasks.harness import score_of
from bench.tasks.task_table import TASKS

MODEL = SimpleNamespace(tok_encode=str.split, max_length=5)


def sample(number: int, right: bool, *, filter_name: str = "none", context: str = "a b", **metrics: float) -> Any:
    arguments = [(context, " c")]
    values = {"acc": float(right), **metrics}
    return {
        "doc_id": number,
        "filter": filter_name,
        "arguments": arguments,
        "target": 1,
        "metrics": list(values),
        **values,
    }


def returned(samples: list[Any], **means: float) -> dict[str, Any]:
    return {"samples": {"boolq": samples}, "results": {"boolq": means}, "n-shot": {"boolq": 3}}


def test_items_stand_in_their_own_order() -> None:
    rows = [sample(10, True), sample(2, False), sample(1, True)]
    score = score_of(TASKS["boolq"], "boolq.jsonl", returned(rows), MODEL)
    assert score.answers() == [True, False, True]
    assert (score.items, score.fewshot, score.source, score.metric) == (3, 3, "boolq.jsonl", "acc")
    assert score.score == pytest.approx(2 / 3)
    assert score.truncated_items == 0
    again = score_of(TASKS["boolq"], "boolq.jsonl", returned(rows[::-1]), MODEL)
    assert again == score
    other = score_of(TASKS["boolq"], "boolq.jsonl", returned([*rows[:2], sample(1, True, context="z")]), MODEL)
    assert other.items_sha256 != score.items_sha256


def test_a_metric_that_is_no_bit_has_lm_evals_mean() -> None:
    rows = [sample(0, True, perplexity=12.5), sample(1, False, perplexity=3.0)]
    score = score_of(TASKS["boolq"], "hub", returned(rows, **{"perplexity,none": 6.1}), MODEL)
    assert score.scores == {"acc": 0.5, "perplexity": 6.1}
    assert list(score.correct) == ["acc"]


def test_other_filters_stand_beside_and_long_items_are_counted() -> None:
    rows = [sample(0, True, context="a b c d e"), sample(1, True), sample(0, False, filter_name="flexible"),
            sample(1, True, filter_name="flexible")]  # fmt: skip
    score = score_of(TASKS["boolq"], "hub", returned(rows), MODEL)
    assert score.scores == {"acc": 1.0, "acc, flexible": 0.5}
    assert (score.items, score.truncated_items) == (2, 1)
