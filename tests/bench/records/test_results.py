"""A results folder as its readers see it: runs, the newest first, and the side that a name means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.results import Results, Run, read_results, read_side, runs_of
from bench.records.schema import POINTS_NAME, PointRecord, append_record
from bench.records.task_schema import GENERATIONS_NAME, GenerationRecord, TaskRecord
from mi_prun.errors import UserError

Point = Callable[..., PointRecord]
Save = Callable[..., str]
Task = Callable[..., TaskRecord]
Generation = Callable[..., GenerationRecord]


def by(record: PointRecord | TaskRecord, run: str, commit: str | None) -> object:
    provenance = record.provenance.model_copy(update={"commit": commit})
    return record.model_copy(update={"run": run, "provenance": provenance})


def test_arms_stand_dense_first_then_by_blocks_dropped_then_drafts(point: Point) -> None:
    def draft(dropped: tuple[int, ...]) -> PointRecord:
        made = point(dropped, kind="draft")
        return made.model_copy(update={"arm": made.arm.model_copy(update={"label": f"draft {len(dropped)}"})})

    def named(label: str) -> PointRecord:
        made = point((5,))
        return made.model_copy(update={"arm": made.arm.model_copy(update={"label": label})})

    points = (draft((3,)), point((2, 3)), named("mi-prun 12.5%"), named("bi 12.5%"), point())
    run = Run("run-1", points)
    assert [arm.label for arm in run.arms] == ["dense", "bi 12.5%", "mi-prun 12.5%", "hybrid 25.0%", "draft 1"]
    assert [record.arm.label for record in run.under(run.main)] == [arm.label for arm in run.arms]


def test_loads_stand_in_the_order_they_were_run_and_the_dense_models_first_is_the_main_one(point: Point) -> None:
    loads = [point().load.model_copy(update={"concurrency": concurrency}) for concurrency in (8, 1, 64)]
    run = Run("run-1", tuple(point(dropped, load=load) for load in loads for dropped in ((3,), ())))
    assert run.loads == loads
    assert run.main == run.dense.load == loads[0]
    assert [record.load.concurrency for record in run.under(loads[1])] == [1, 1]
    other = loads[0].model_copy(update={"concurrency": 2})
    assert (run.point(run.arms[0], other), run.under(other)) == (None, [])


def test_of_two_points_of_an_arm_under_a_load_the_last_counts(point: Point) -> None:
    first, last = point((3,)), point((3,), time="2026-11-26T00:00:00+00:00")
    run = Run("run-1", (point(), first, last))
    assert run.point(last.arm, last.load) == last
    assert len(run.under(run.main)) == 2


def test_a_run_is_judged_by_a_pruned_models_quality(point: Point) -> None:
    blind = {"quality": None, "quality_measured_on": None}
    assert Run("r", (point(), point((3,)))).judged
    assert not Run("r", (point(), point((3,), **blind))).judged  # the dense model's own says nothing
    assert not Run("r", (point(),)).judged


def test_runs_are_the_newest_first_and_those_without_a_dense_model_are_left_out(point: Point) -> None:
    assert runs_of([]) == []
    points = [point(run="a"), point((3,), run="b"), point((3,), run="a"), point(run="c")]
    assert [(run.name, len(run.points)) for run in runs_of(points)] == [("c", 1), ("a", 2)]


def test_what_a_model_was_asked_goes_by_its_weights(task: Task, generation: Generation) -> None:
    other = {"dense": task().dense.model_copy(update={"weights_sha256": "9" * 64, "name": "owner/dense"})}
    results = Results((), (task(), task((3,)), task(**other)), (generation((), "a"),))
    assert [len(results.tasks_of(digit * 64)) for digit in "098"] == [2, 1, 0]
    assert [len(results.generations_of(digit * 64)) for digit in "09"] == [1, 0]


def test_a_folder_may_hold_tasks_or_continuations_only(
    tmp_path: Path, task: Task, generation: Generation, save: Save
) -> None:
    asked = read_results(Path(save(tmp_path / "tasks", (), [task()])))
    assert (asked.runs, asked.tasks, asked.generations) == ((), (task(),), ())
    (tmp_path / "continued").mkdir()
    append_record(tmp_path / "continued", generation((), "a"), GENERATIONS_NAME)
    assert read_results(tmp_path / "continued").generations == (generation((), "a"),)


def test_what_there_is_nothing_to_show_of_is_refused(tmp_path: Path, point: Point, save: Save) -> None:
    with pytest.raises(UserError, match=r"has no points\.jsonl; make some with"):
        read_results(tmp_path)
    (tmp_path / POINTS_NAME).touch()
    with pytest.raises(UserError, match="holds no record yet; make some with"):
        read_results(tmp_path)
    save(tmp_path, [point((1,))])
    with pytest.raises(UserError, match=r"holds no run with its dense model \(all were interrupted\); run again"):
        read_results(tmp_path)


def test_a_side_that_is_not_there(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    with pytest.raises(UserError, match="has no points"):
        read_side(str(tmp_path))
    a = save(tmp_path / "a", one_sweep)
    with pytest.raises(UserError, match=r"has no run or commit 'zzz'; it has run-1 \(commit 0123456789ab\)"):
        read_side(f"{a}@zzz")


def test_a_name_means_the_beginning_of_a_run_or_the_newest_of_a_commit(
    tmp_path: Path, point: Point, task: Task, save: Save
) -> None:
    points = [by(point(), run, commit) for run, commit in (("r-1", "aaa1"), ("r-2", "bbb2"), ("aaa-3", "bbb2"))]
    tasks = [by(task(), f"asked-{commit}", commit) for commit in ("aaa1", "bbb2", None)]
    place = save(tmp_path / "results", points, tasks)  # type: ignore[arg-type]
    for name, run, asked in (
        ("r-1", "r-1", ["asked-aaa1"]),
        ("r-", "r-2", ["asked-bbb2"]),  # of several the newest
        ("bbb", "aaa-3", ["asked-bbb2"]),
        ("aaa1", "r-1", ["asked-aaa1"]),
        ("aaa", "aaa-3", ["asked-bbb2"]),  # a run's name comes before a commit
    ):
        side = read_side(f"{place}@{name}")
        assert (side.run and side.run.name, [record.run for record in side.tasks]) == (run, asked)
        assert (side.name, side.others) == (f"{place}@{name}", ())
    plain = read_side(place)
    assert plain.run is not None
    assert (plain.run.name, len(plain.tasks)) == ("aaa-3", 3)  # all that the model was asked
    assert plain.others == (f"{place}@r-2", f"{place}@r-1")


def test_a_commit_that_is_not_known_is_nobodys(tmp_path: Path, point: Point, task: Task, save: Save) -> None:
    place = save(tmp_path, [by(point(), "r-1", None)], [by(task(), "asked", "aaa1")])  # type: ignore[list-item]
    assert read_side(f"{place}@r-1").tasks == ()


def test_a_side_of_tasks_only(tmp_path: Path, task: Task, save: Save) -> None:
    other = {"dense": task().dense.model_copy(update={"weights_sha256": "9" * 64, "name": "owner/newer"})}
    place = save(tmp_path, (), [by(task(), "a", "aaa1"), by(task(**other), "b", "bbb2")])  # type: ignore[list-item]
    side = read_side(place)
    assert (side.run, [record.run for record in side.tasks]) == (None, ["b"])  # of the model asked last
    assert side.origin.dense.name == "owner/newer"
    assert read_side(f"{place}@aaa").origin.dense.name == "owner/dense"
    with pytest.raises(UserError, match="has neither a run nor tasks of commit ccc"):
        read_side(f"{place}@ccc")


def test_a_folder_whose_name_has_an_at_sign(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    place = save(tmp_path / "results@home", one_sweep)
    run = Run("run-1", tuple(one_sweep))
    assert [read_side(name).run for name in (place, f"{place}@run")] == [run, run]


def test_of_several_runs_one_that_was_judged_is_taken_and_the_others_are_named(
    tmp_path: Path, one_sweep: list[PointRecord], point: Point
) -> None:
    """A model, then a shape of which nobody knows the quality."""
    shape = point().dense.model_copy(update={"name": "qwen", "shape": "qwen", "weights_sha256": None})
    unjudged = {"run": "run-2", "dense": shape, "quality": None, "quality_measured_on": None}
    for taken_model in (*one_sweep, *(point(dropped, **unjudged) for dropped in ((), (3,)))):
        append_record(tmp_path, taken_model)
    place = str(tmp_path)

    def judged(run: Run) -> bool:
        return run.judged

    newest, by_quality = read_side(place), read_side(place, judged)
    assert newest.run is not None
    assert by_quality.run is not None
    assert (newest.run.name, newest.others) == ("run-2", (f"{place}@run-1",))
    assert (by_quality.run.name, by_quality.others) == ("run-1", (f"{place}@run-2",))
    assert read_side(f"{place}@run-2", judged).run == newest.run  # as the user says
    assert read_side(f"{place}@run-2").others == ()
