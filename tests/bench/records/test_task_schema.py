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
