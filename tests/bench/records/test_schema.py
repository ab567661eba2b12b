"""Points: what is written is read back, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.records.schema import POINTS_NAME, PointRecord, Speed, Workload, append_record, read_lines, read_points
from mi_prun.errors import UserError

Point = Callable[..., PointRecord]


def test_what_is_appended_is_read_back_in_order(tmp_path: Path, one_sweep: list[PointRecord]) -> None:
    for record in one_sweep:
        append_record(tmp_path, record)
    before = (tmp_path / POINTS_NAME).read_bytes()
    assert read_points(tmp_path) == one_sweep
    append_record(tmp_path, one_sweep[0])
    assert (tmp_path / POINTS_NAME).read_bytes().startswith(before)  # appended, never rewritten
    assert read_points(tmp_path) == [*one_sweep, one_sweep[0]]


def changed(point: PointRecord, **fields: object) -> str:
    return json.dumps(json.loads(point.model_dump_json()) | fields) + "\n"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schema_version": 1}, r"line 2 has schema version 1; this release reads 2 and 3: move the file away"),
        ({"schema_version": None}, r"schema version None"),
        ({"time": 7}, r"field time: "),
        ({"arm": "draft"}, r"field arm: "),
        ({"mood": "good"}, r"field mood: "),
        ({"memory": {"weight_bytes": 1}}, r"field memory.engine_weight_bytes: "),
        ({"speed": {"rounds": []}}, r"field speed.rounds: "),
    ],
)
def test_a_point_that_is_not_ours_is_refused_with_its_line(
    tmp_path: Path, point: Point, fields: dict[str, object], said: str
) -> None:
    append_record(tmp_path, point())
    with (tmp_path / POINTS_NAME).open("a") as file:
        file.write(changed(point(), **fields))
    with pytest.raises(UserError, match=said):
        read_points(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]\n", "not json\n", "\n", "7\n", "[" * 100_000 + "\n", "\xff\n"])
def test_lines_that_are_no_records(tmp_path: Path, text: str) -> None:
    (tmp_path / POINTS_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="line 1"):
        read_points(tmp_path)


def test_a_line_cut_short_is_said(tmp_path: Path, point: Point) -> None:
    append_record(tmp_path, point())
    path = tmp_path / POINTS_NAME
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="last line is cut short"):
        read_points(tmp_path)


def test_a_folder_without_points(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no points.jsonl; make some with `mi-prun-bench sweep`"):
        read_points(tmp_path)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(UserError, match=r"records\.jsonl there is an earlier release's"):
        read_points(tmp_path)
    assert read_lines(tmp_path, POINTS_NAME, PointRecord) == []


def test_medians_over_the_rounds(point: Point) -> None:
    speed = point().speed
    assert (speed.output_tokens_per_s, speed.total_tokens_per_s, speed.completed) == (100, 300, 96)
    assert (speed.ttft.p50_ms, speed.tpot.p99_ms) == (8, 16)
    assert speed.energy_j is None
    rounds = tuple(
        one.model_copy(update={"energy_j": joules}) for one, joules in zip(speed.rounds, (3.0, 1.0, 2.0), strict=True)
    )
    assert Speed(rounds=rounds).energy_j == 2
    assert Speed(rounds=(*rounds, speed.rounds[0])).energy_j is None  # a round that does not say


def test_a_load_is_closed_or_open(point: Point) -> None:
    load = point().load
    assert load.label == "chat, 4 in flight"
    opened = load.model_copy(update={"concurrency": None, "rate_per_s": 2.5})
    assert opened.label == "chat, 2.5 requests/s"
    for concurrency, rate in ((4, 2.5), (None, None)):
        with pytest.raises(ValidationError, match="either concurrency"):
            Workload(**(load.model_dump() | {"concurrency": concurrency, "rate_per_s": rate}))


def test_a_rate_that_is_not_kept_up_with(point: Point) -> None:
    load = point().load.model_copy(update={"concurrency": None, "rate_per_s": 1.6})

    def growing(*growth: float | None) -> PointRecord:
        rounds = point().speed.rounds
        speed = Speed(
            rounds=tuple(r.model_copy(update={"backlog_growth": g}) for r, g in zip(rounds, growth, strict=True))
        )
        return point(load=load, speed=speed)

    assert growing(0.3, 0.05, 0.25).saturated  # the median
    assert not growing(0.3, 0.05, 0.02).saturated
    assert not growing(0.3, 0.3, None).saturated  # a round that does not say
    assert not point(load=load.model_copy(update={"rate_per_s": 9.0})).saturated  # requests/s alone say nothing


def test_a_speed_up_above_its_bound_is_told(point: Point) -> None:
    record = point((2, 3))  # 1.25x [1.23, 1.27]
    assert record.impossible == []
    roof = record.roofline[0].model_copy(update={"bound": 1.2})
    assert record.model_copy(update={"roofline": (roof,)}).impossible == ["decode at least 1.230x of at most 1.200x"]
    assert record.model_copy(update={"bound": 1.24}).impossible == []  # the interval reaches below it
    assert record.model_copy(update={"bound": 1.22}).impossible == ["tokens/s at least 1.230x of at most 1.220x"]


@pytest.mark.parametrize("folder", ["reference", "shape"])
def test_records_of_the_schema_before_are_read(folder: str) -> None:
    assert len(read_points(Path(__file__).parents[3] / "bench" / "published" / "sweep" / folder)) >= 2


def test_a_point_of_the_schema_before(tmp_path: Path, point: Point) -> None:
    data = json.loads(point((3,)).model_dump_json())
    del data["bound"], data["selection"], data["provenance"]["sweep"]
    (tmp_path / POINTS_NAME).write_text(json.dumps(data | {"schema_version": 2}) + "\n")
    (record,) = read_points(tmp_path)
    assert record.schema_version == 2
    assert (record.bound, record.selection, record.provenance.sweep) == (None, None, {})


def test_figures_are_finite(point: Point) -> None:
    memory = point().memory.model_dump()
    with pytest.raises(ValidationError, match="finite"):
        point(memory=memory | {"max_concurrency": float("nan")})
