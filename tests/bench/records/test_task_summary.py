"""Tasks as rows: each model beside its dense one, on the same items only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.schema import append_record, read_lines
from bench.records.task_schema import TASKS_NAME, TaskRecord
from bench.records.task_summary import comparable_answers, difference_of, mean_rows, model_key, task_rows

Task = Callable[..., TaskRecord]


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


def test_a_record_of_each_model_pairs_with_dense(tmp_path: Path, task: Callable[..., TaskRecord]) -> None:
    for record in (task(), task((3,), [False, False, True, True])):
        append_record(tmp_path, record, TASKS_NAME)
    rows = task_rows(read_lines(tmp_path, TASKS_NAME, TaskRecord))
    assert rows[1].difference is not None
    assert (rows[1].difference.gained, rows[1].difference.lost) == (0, 1)


def test_without_records_there_are_no_rows() -> None:
    assert task_rows([]) == []
    assert mean_rows([]) == []


def test_a_model_whose_dense_one_was_not_asked_has_no_difference(task: Task) -> None:
    (row,) = task_rows([task((3,))])
    assert row.difference is None
    assert row.line() == "    hybrid 12.5%: boolq          acc          75.0% of 4"
    other = {"dense": task().dense.model_copy(update={"weights_sha256": "9" * 64})}
    assert task_rows([task((), **other), task((3,))])[1].difference is None


def test_a_line_says_what_was_cut_and_how_sure_a_difference_is(task: Task) -> None:
    right = [True] * 3000
    dense, worse = task((), right), task((3,), [*right[:-8], *[False] * 8], truncated_items=7)
    first, second = task_rows([worse, dense])
    assert first.line() == "           dense: boolq          acc         100.0% of 3,000"
    # Eight items of 3,000; that eight tosses of a coin fall alike: 2 / 2 ** 8.
    assert ", to dense -0.3 [" in second.line()
    assert second.line().endswith("] points (p 0.0078), 8 flips; 7 cut to the context")


def test_a_model_is_told_by_its_weights_and_blocks_and_not_by_its_folder(task: Task) -> None:
    record = task((3,))
    moved = record.model_copy(
        update={
            "arm": record.arm.model_copy(update={"model": "elsewhere", "label": "another"}),
            "dense": record.dense.model_copy(update={"name": "elsewhere"}),
        }
    )
    assert model_key(moved) == model_key(record)
    assert len(task_rows([record, moved])) == 1
    assert len({model_key(each) for each in (record, task((2,)), task())}) == 3


def test_answers_to_other_texts_or_with_other_room_are_no_pairs(task: Task) -> None:
    first = task()
    assert comparable_answers(first, task((3,), [False] * 4))  # whatever the answers
    for fields in ({"items_sha256": "4" * 64}, {"context_tokens": 256}, {"task": "piqa"}):
        assert not comparable_answers(first, task((3,), **fields))
    assert not comparable_answers(first, task((3,), [True] * 3))


def test_a_difference_is_the_second_ones_against_the_first(task: Task) -> None:
    better = difference_of(task((), [True, False, False, False]), task((3,), [True, True, True, False]))
    assert (better.mean, better.gained, better.lost) == (0.5, 2, 0)
    tied = difference_of(task((), [True, False]), task((3,), [False, True]))
    assert (tied.mean, tied.gained, tied.lost, tied.p_value) == (0, 1, 1, 1)


def test_one_task_has_no_mean(task: Task) -> None:
    assert mean_rows(task_rows([task(), task((3,))])) == []
    more = [task(), task(task="piqa"), task((3,))]
    assert [row.arm.kind for row in mean_rows(task_rows(more))] == ["dense"]  # the pruned one has one pair only


def test_a_mean_of_no_change_is_said_with_its_interval(task: Task) -> None:
    records = [task(dropped, task=name) for name in ("boolq", "piqa") for dropped in ((), (3,))]
    dense, pruned = mean_rows(task_rows(records))
    assert dense.line() == "           dense: mean of 2                   75.0%"
    assert pruned.line().startswith("    hybrid 12.5%: mean of 2                   75.0%, to dense +0.0 [-")


def test_two_healings_of_one_label_are_told_apart(task: Task) -> None:
    """Each command gives its own models labels; a later one knows nothing of them."""
    first = task((2, 3), healed=True)
    assert first.arm.healing is not None
    longer = first.arm.model_copy(update={"healing": first.arm.healing.model_copy(update={"tokens": 900_000})})
    second = first.model_copy(update={"arm": longer})
    assert [row.record.arm.label for row in task_rows([first])] == ["hybrid 25.0% healed"]
    labels = [row.record.arm.label for row in task_rows([task(), first, second])]
    assert labels == [
        "dense",
        "hybrid 25.0% healed (100,000 tokens of wiki.txt, seed 3)",
        "hybrid 25.0% healed (900,000 tokens of wiki.txt, seed 3)",
    ]
    elsewhere = first.arm.model_copy(update={"blocks": first.arm.blocks.model_copy(update={"dropped": (4, 5)})})
    rows = task_rows([first, first.model_copy(update={"arm": elsewhere})])
    assert [row.record.arm.label for row in rows] == [
        "hybrid 25.0% healed (without 2, 3)",
        "hybrid 25.0% healed (without 4, 5)",
    ]
