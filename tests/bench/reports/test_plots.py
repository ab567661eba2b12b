"""The pictures, read back: their words, and where their marks stand on their axes."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from bench.records.results import Run
from bench.records.schema import PointRecord, Workload
from bench.records.task_schema import TaskRecord
from bench.records.task_summary import task_rows
from bench.reports.plots import (
    block_map_svg,
    curve_groups,
    curves_svg,
    healings,
    line_names,
    memory_svg,
    pareto_svg,
    roofline_svg,
    tasks_svg,
)

Point = Callable[..., PointRecord]
SVG = "{http://www.w3.org/2000/svg}"
RATIOS = ("hybrid 12.5%", "hybrid 25.0%", "hybrid 50.0%")


@dataclass(frozen=True)
class At:
    """words: of a text, or the colour of a mark. x, y: on the drawing."""

    words: str
    x: float
    y: float


class Drawing:
    def __init__(self, svg: str) -> None:
        root = ElementTree.fromstring(svg)
        self.title = root.get("aria-label") or ""
        self.texts = [
            At(" ".join((text.text or "").split()), float(text.get("x", 0)), float(text.get("y", 0)))
            for text in root.iter(f"{SVG}text")
        ]
        self.words = [text.words for text in self.texts]
        marks = [(mark, re.search(r"fill: ([^;]+)", mark.get("style", ""))) for mark in root.iter(f"{SVG}use")]
        self.marks = [At(fill[1], float(mark.get("x", 0)), float(mark.get("y", 0))) for mark, fill in marks if fill]

    def ticks(self, left: float = -math.inf, right: float = math.inf) -> tuple[list[At], list[At]]:
        """Numbers under a panel and beside it. left, right: where the panel ends."""
        drawn = [text for text in self.texts if re.fullmatch(r"[−\d.,]+", text.words) and left < text.x < right]
        rows = [[t for t in drawn if abs(t.y - one.y) < 1] for one in drawn]
        columns = [[t for t in drawn if abs(t.x - one.x) < 1] for one in drawn]
        return max(rows, key=len), max(columns, key=len, default=[])

    def coloured(self, colour: str) -> list[At]:
        return [mark for mark in self.marks if mark.words == colour]


def value(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def scale(ticks: Sequence[At], along: str, *, log: bool = False) -> Callable[[At], float]:
    """What a place on an axis means, by two of its numbers."""
    first, last = ticks[0], ticks[-1]
    places = getattr(first, along), getattr(last, along)
    ends = value(first.words), value(last.words)
    if log:
        ends = math.log(ends[0]), math.log(ends[1])
    slope = (ends[1] - ends[0]) / (places[1] - places[0])

    def read(mark: At) -> float:
        drawn = ends[0] + slope * (getattr(mark, along) - places[0])
        return math.exp(drawn) if log else drawn

    return read


def test_quality_against_speed(one_sweep: list[PointRecord]) -> None:
    drawn = Drawing(pareto_svg(Run("run-1", tuple(one_sweep))))
    for words in ("dense", "12.5%", "25%", "50%"):
        assert drawn.words.count(words) == 1
    assert "output tokens/s, × dense (right: faster)" in drawn.words
    assert "perplexity, × dense (down: better)" in drawn.words
    across, up = drawn.ticks()
    x, raw = scale(across, "x"), scale(up, "y")
    (origin,) = drawn.coloured("var(--dense)")
    lift = raw(origin) - 1  # a number's foot stands below its tick
    assert x(origin) == pytest.approx(1)
    assert [(x(mark), raw(mark) - lift) for mark in drawn.coloured("var(--s0)")] == [
        pytest.approx(pair, abs=1e-3) for pair in ((1.125, 1.2), (1.25, 1.4), (1.5, 1.8))
    ]


def test_healed_models_have_a_curve_and_arrows_that_lead_to_it(healed_sweep: list[PointRecord]) -> None:
    run = Run("run-1", tuple(healed_sweep))
    arrows = healings(run.points[1:], run.dense)
    assert [[round(value, 3) for place in pair for value in place] for pair in arrows] == [
        [1.125, 1.2, 1.125, 1.08],
        [1.25, 1.4, 1.25, 1.16],
    ]
    svg = pareto_svg(run)
    drawn = Drawing(svg)
    assert {"hybrid", "hybrid healed"} <= set(drawn.words)
    across, up = drawn.ticks()
    x, raw = scale(across, "x"), scale(up, "y")
    (origin,) = drawn.coloured("var(--dense)")
    lift = raw(origin) - 1
    healed = [(x(mark), raw(mark) - lift) for mark in drawn.coloured("var(--s1)")][:2]
    assert healed == [pytest.approx(pair, abs=2e-3) for pair in ((1.125, 1.08), (1.25, 1.16))]
    before = pareto_svg(Run("run-1", tuple(point for point in healed_sweep if point.arm.healing is None)))
    arrow_parts = svg.count("stroke-linecap: round") - before.count("stroke-linecap: round")
    assert arrow_parts == 4  # a shaft and a head each


def test_each_spec_of_a_method_has_its_line(point: Point) -> None:
    def made(dropped: Sequence[int], spec: str, *, healed: bool = False) -> PointRecord:
        one = point(dropped, healed=healed)
        folder = f"results/checkpoints/{spec}-{len(dropped)}{'-healed-0123abcd' if healed else ''}-virtual"
        arm = one.arm.model_copy(update={"label": f"{one.arm.label} ({folder})", "model": folder})
        return one.model_copy(update={"arm": arm})

    specs = ("hybrid", "hybrid-0")
    pruned = [made(dropped, spec) for dropped in ((3,), (2, 3)) for spec in specs]
    healed = made((3,), "hybrid-0", healed=True)
    assert list(line_names([point.arm for point in (*pruned, healed)]).values()) == [
        "hybrid, hybrid", "hybrid, hybrid-0", "hybrid, hybrid", "hybrid, hybrid-0", "hybrid healed, hybrid-0",
    ]  # fmt: skip
    words = Drawing(pareto_svg(Run("run-1", (point(), *pruned)))).words
    assert {"hybrid, hybrid", "hybrid, hybrid-0"} <= set(words)
    assert set(line_names([one.arm for one in pruned[::2]]).values()) == {"hybrid"}  # alone: by its method


def test_latency_against_throughput(point: Point) -> None:
    def loaded(dropped: Sequence[int], load: Workload) -> PointRecord:
        result = point(dropped, load=load)
        faster = math.sqrt(load.concurrency or 1)
        rounds = tuple(
            one.model_copy(update={"output_tokens_per_s": faster * one.output_tokens_per_s})
            for one in result.speed.rounds
        )
        return result.model_copy(update={"speed": result.speed.model_copy(update={"rounds": rounds})})

    loads = [point().load.model_copy(update={"concurrency": in_flight}) for in_flight in (1, 4, 64)]
    run = Run("run-1", tuple(loaded(dropped, load) for load in loads for dropped in ((), (3,), (2, 3), (2, 3, 5, 6))))
    (group,) = curve_groups(run)
    drawn = Drawing(curves_svg(run, group))
    assert "requests in flight" in drawn.title
    for words in ("dense", *RATIOS):
        assert words in drawn.words
    for words in ("1 in flight", "4 in flight", "64 in flight"):
        assert drawn.words.count(words) == 2
    assert drawn.words.count("output tokens/s (right: more)") == 2
    assert {"TTFT p50, ms (down: better)", "TPOT p50, ms (down: better)"} <= set(drawn.words)
    middle = min(text.x for text in drawn.texts if text.words.startswith("TPOT p50"))
    for ends in ((-math.inf, middle), (middle, math.inf)):
        x = scale(drawn.ticks(*ends)[0], "x", log=True)
        for colour, times in (("var(--dense)", 1), ("var(--s0)", 1.125), ("var(--s1)", 1.25), ("var(--s2)", 1.5)):
            curve = [x(mark) for mark in drawn.coloured(colour) if ends[0] < mark.x < ends[1]][:3]
            assert curve == pytest.approx([100 * times, 200 * times, 800 * times], rel=1e-3)


def test_roofline_efficiency(one_sweep: list[PointRecord]) -> None:
    drawn = Drawing(roofline_svg(Run("run-1", tuple(one_sweep))))
    assert [words for words in drawn.words if words in RATIOS] == list(RATIOS)
    assert {"decode, batch 4 (chat)", "times faster than dense", "98%", "94%", "75%"} <= set(drawn.words)
    x = scale(drawn.ticks()[0], "x")
    reached = [x(mark) for mark in drawn.coloured("var(--s0)")]
    assert reached == pytest.approx([1.125, 1.25, 1.5], abs=1e-3)
    heights = [mark.y for mark in drawn.coloured("var(--s0)")]
    bounds = [x(mark) for mark in drawn.coloured("currentColor") if mark.y in heights and x(mark) > 1.01]
    assert bounds == pytest.approx([8 / 7, 8 / 6, 2], abs=1e-3)


def test_memory(one_sweep: list[PointRecord]) -> None:
    drawn = Drawing(memory_svg(Run("run-1", tuple(one_sweep))))
    assert [words for words in drawn.words if words in ("dense", *RATIOS)] == ["dense", *RATIOS]
    assert {"weights, MiB", "KV cache, tokens", "peak RSS, GiB"} <= set(drawn.words)
    for values in (
        ("1,024 (1.00×)", "896 (0.88×)", "768 (0.75×)", "512 (0.50×)"),
        ("100,000 (1.00×)", "114,286 (1.14×)", "133,333 (1.33×)", "200,000 (2.00×)"),
        ("2.00 (1.00×)",) * 4,
    ):
        assert [words for words in drawn.words if words in values] == list(values)


def test_tasks_against_dense(task: Callable[..., TaskRecord]) -> None:
    right = {(): 40, (3,): 30, (2, 3): 20}
    records = [
        task(dropped, [number < count for number in range(40)], task=name)
        for name in ("boolq", "piqa")
        for dropped, count in right.items()
    ]
    drawn = Drawing(tasks_svg(task_rows(records), "run-1"))
    for words in ("boolq", "piqa", "hybrid 12.5%", "hybrid 25.0%", "right answers, points to dense (right: better)"):
        assert words in drawn.words
    x = scale(drawn.ticks()[0], "x")
    for colour, points in (("var(--s0)", -25), ("var(--s1)", -50)):
        assert [x(mark) for mark in drawn.coloured(colour)][:2] == pytest.approx([points] * 2, abs=0.1)


def test_the_block_map_names_every_model(one_sweep: list[PointRecord]) -> None:
    svg = block_map_svg([point.arm for point in one_sweep])
    assert Drawing(svg).words == ["dense", *RATIOS, *map(str, range(8))]
    assert re.findall(r"block (\d): dropped", svg) == ["3", "2", "3", "2", "3", "5", "6"]


def test_no_arrow_leads_from_one_text_to_another(
    healed_sweep: list[PointRecord], judged_elsewhere: Callable[..., PointRecord]
) -> None:
    moved = [judged_elsewhere(p) if p.arm.label == "hybrid 12.5%" else p for p in healed_sweep]
    run = Run("run-1", tuple(moved))
    assert [[round(value, 3) for place in pair for value in place] for pair in healings(run.points[1:], run.dense)] == [
        [1.25, 1.4, 1.25, 1.16],
    ]
