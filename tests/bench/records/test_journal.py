"""A results folder is parsed once, and what is appended to it is in memory too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.records import journal
from bench.records.journal import Journal, results_folder
from bench.records.schema import PointRecord, RoundRecord, read_lines, read_points
from bench.records.task_schema import GENERATIONS_NAME, TASKS_NAME, GenerationRecord, TaskRecord

Point = Callable[..., PointRecord]


def a_round(point: PointRecord, number: int, *, session: str = "s", settings_sha256: str = "a") -> RoundRecord:
    return RoundRecord(
        run="run-1",
        settings_sha256=settings_sha256,
        session=session,
        time=point.time,
        arm=point.arm.label,
        load=point.load,
        number=number,
        figures=point.speed.rounds[0],
        startup_s=1.0,
        load_s=None,
        engine_weight_bytes=None,
        kv_tokens=100,
        peak_device_bytes=None,
        peak_rss_bytes=1,
        acceptance=None,
    )


def test_what_is_added_is_on_the_disk_and_in_memory(
    tmp_path: Path,
    point: Point,
    task: Callable[..., TaskRecord],
    generation: Callable[..., GenerationRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[str] = []

    def counted(folder: Path, name: str, kind: Any) -> Any:
        reads.append(name)
        return read_lines(folder, name, kind)

    monkeypatch.setattr(journal, "read_lines", counted)
    with results_folder(tmp_path / "results") as folder:
        folder.add_point(point())
        folder.add_point(point((3,)))
        folder.add_round(a_round(point(), 0))
        folder.add_task(task((3,)))
        folder.add_generation(generation((3,), "there was a king"))
        assert sorted(reads) == ["generations.jsonl", "points.jsonl", "rounds.jsonl", "tasks.jsonl"]  # each once
        assert folder.points == read_points(folder.path)
        assert folder.rounds == read_lines(folder.path, "rounds.jsonl", RoundRecord)
        assert folder.tasks == read_lines(folder.path, TASKS_NAME, TaskRecord)
        assert folder.generations == read_lines(folder.path, GENERATIONS_NAME, GenerationRecord)
    with results_folder(tmp_path / "results") as folder:
        assert [one.arm.label for one in folder.points] == ["dense", "hybrid 12.5%"]


def test_a_point_is_written_once(tmp_path: Path, point: Point) -> None:
    with results_folder(tmp_path) as folder:
        folder.add_round(a_round(point(), 0))
        own = Journal(folder, "a", ["dense"])
        assert (own.resumed, own.run) == (True, "run-1")
        own.add_points([point()])
        own.add_points([point(), point((3,))])
        assert own.points == folder.points == [point(), point((3,))]
        assert Journal(folder, "a", ["dense"], again=True).points == []
        assert not Journal(folder, "b", ["dense"]).resumed  # other settings


def test_a_round_counts_where_one_process_measured_all_arms(tmp_path: Path, point: Point) -> None:
    dense, pruned = point(), point((3,))
    with results_folder(tmp_path) as folder:
        folder.add_round(a_round(dense, 0))
        own = Journal(folder, "a", [dense.arm.label, pruned.arm.label])
        assert own.rounds(dense.load, 1) is None
        own.add_round(a_round(pruned, 0, session="another"))
        assert not own.whole(dense.load, 0)
        own.add_round(a_round(dense, 0, session="another"))
        assert own.whole(dense.load, 0)
        by_arm = own.rounds(dense.load, 1)
        assert by_arm is not None
        assert [len(rounds) for rounds in by_arm.values()] == [1, 1]
