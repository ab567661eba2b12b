"""Records of tasks: every item has its bit, and what does not add up is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.records.schema import append_record, read_lines
from bench.records.task_schema import TASKS_NAME, TaskRecord, packed, unpacked
from bench.records.task_summary import mean_rows, task_rows
from mi_prun.errors import UserError

Task = Callable[..., TaskRecord]


@given(st.lists(st.booleans(), max_size=100))
def test_bits_come_back_in_order(bits: list[bool]) -> None:
    assert unpacked(packed(bits), len(bits)) == bits


def test_the_first_item_is_the_first_bit() -> None:
    assert packed([True, False, False, False, False, False, False, True, True]) == "8180"


def test_a_line_is_read_back(tmp_path: Path, task: Task) -> None:
    append_record(tmp_path, task((3,)), TASKS_NAME)
    assert read_lines(tmp_path, TASKS_NAME, TaskRecord) == [task((3,))]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"items": 9}, "does not hold 9 items"),
        ({"items": 0}, "greater than or equal to 1"),
        ({"correct": {"acc": "xy"}}, "does not hold 4 items"),
        ({"metric": "f1"}, "metric f1 has no score"),
    ],
)
def test_a_score_that_does_not_add_up(task: Task, fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        task(**fields)


def test_a_line_of_another_schema(tmp_path: Path, task: Task) -> None:
    line = json.loads(task().model_dump_json()) | {"schema_version": 1}
    (tmp_path / TASKS_NAME).write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="has schema version 1; this release reads 2"):
        read_lines(tmp_path, TASKS_NAME, TaskRecord)


def test_pairs_are_made_only_of_the_same_items(task: Task) -> None:
    dense = task((), [True, True, False, False])
    worse = task((3,), [True, False, False, False])
    rows = task_rows([worse, dense])
    assert [row.record.arm.kind for row in rows] == ["dense", "pruned"]
    assert rows[0].difference is None
    assert rows[1].difference is not None
    assert rows[1].difference.mean == -0.25
    assert "to dense -25.0 [" in rows[1].line()
    for other in (
        task((3,), [True, False, False, False], items_sha256="4" * 64),
        task((3,), [True, False, False, False], context_tokens=256),
        task((3,), [True, False]),
    ):
        assert task_rows([dense, other])[1].difference is None


def test_the_newest_answers_count(task: Task) -> None:
    old, new = task((3,), [False] * 4), task((3,), [True] * 4)
    assert [row.record.score.score for row in task_rows([old, new])] == [1.0]


def test_the_mean_is_over_the_tasks_that_have_pairs(task: Task) -> None:
    records = [
        task((), [True] * 4),
        task((), [True] * 4, task="piqa"),
        task((), [True] * 4, task="winogrande"),
        task((3,), [True, True, True, False]),
        task((3,), [False, True, True, False], task="piqa"),
        task((3,), [False] * 4, task="winogrande", items_sha256="5" * 64),
    ]
    dense, pruned = mean_rows(task_rows(records))
    assert (dense.tasks, dense.score, dense.difference) == (3, 1.0, None)
    assert (pruned.tasks, pruned.score) == (2, 0.625)
    assert pruned.difference is not None
    assert pruned.difference[0] == pytest.approx(-0.375)
    assert "mean of 2" in pruned.line()
