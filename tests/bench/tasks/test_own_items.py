"""Our own items: a right choice each, none of them by its place, the same at every writing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.tasks.own_items import agreement, capitals, write_items
from bench.tasks.task_table import TASKS, check_local, local_rows


def test_items_are_what_the_tasks_read(tmp_path: Path) -> None:
    write_items(tmp_path)
    tasks = [TASKS["capitals"], TASKS["agreement"]]
    check_local(tasks, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_items(tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert all(len(local_rows(task, tmp_path)) >= 150 for task in tasks)


def test_capitals() -> None:
    rows = capitals()
    france = rows[0]
    assert france["query"] == "The capital of France is the city of"
    assert france["choices"][france["gold"]] == "Paris"
    assert all(len(set(row["choices"])) == 4 for row in rows)
    assert len({row["query"] for row in rows}) == len(rows)
    assert min(Counter(row["gold"] for row in rows).values()) > len(rows) / 6


def test_the_verb_goes_with_the_subject_not_with_the_noun_beside_it() -> None:
    rows = agreement()
    singular, plural = {"is", "was", "has"}, {"are", "were", "have"}
    for number, row in enumerate(rows):
        right, wrong = row["choices"][row["gold"]], row["choices"][1 - row["gold"]]
        assert right in (plural if number % 2 else singular)
        assert wrong in (singular if number % 2 else plural)
        beside = row["query"].split()[-1]
        assert beside.endswith("s") is not (number % 2 == 1)
    assert len({row["query"] + row["choices"][row["gold"]] for row in rows}) == len(rows)
