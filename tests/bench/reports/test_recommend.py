"""The ratio to take: the fastest, or the least loss, of those that fit; and what is nearest where none does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.records.flat_rows import rows_of
from bench.records.results import Run
from bench.records.schema import PointRecord
from bench.records.task_schema import TaskRecord
from bench.reports.recommend import Recommendation, parse_limits, recommend
from mi_prun.errors import UserError

Point = Callable[..., PointRecord]


@pytest.fixture
def run(one_sweep: list[PointRecord]) -> Run:
    """Without 0, 1, 2, 4 of 8 blocks: 1, 1.125, 1.25, 1.5 times the speed; perplexity 50, 60, 70, 90; at most 1 GiB."""
    return Run("run-1", tuple(one_sweep))


def taken(run: Run, ppl: str | None = None, speedup: float | None = None, memory: str | None = None) -> Recommendation:
    return recommend(run, parse_limits(ppl, speedup, memory))


@pytest.mark.parametrize(
    ("limits", "arm"),
    [
        ({"ppl": "20%"}, "hybrid 12.5%"),
        ({"ppl": "0.45"}, "hybrid 25.0%"),  # the fastest within it
        ({"ppl": "5%"}, "dense"),  # nothing else is within it
        ({"speedup": 1.1}, "hybrid 12.5%"),  # the least loss
        ({"speedup": 1.0}, "dense"),
        ({"memory": "2GiB"}, "dense"),
        ({"memory": "1GiB"}, "hybrid 12.5%"),  # 0.9 GiB of room, 0.875 GiB of weights
        ({"memory": "700MiB"}, "hybrid 50.0%"),
        ({"ppl": "100%", "speedup": 1.2, "memory": "900MiB"}, "hybrid 50.0%"),
        ({"ppl": "45%", "speedup": 1.2}, "hybrid 25.0%"),
    ],
)
def test_what_fits(run: Run, limits: dict[str, object], arm: str) -> None:
    taken_model = taken(run, **limits)  # type: ignore[arg-type]
    assert taken_model.fits
    assert taken_model.arm == arm
    assert taken_model.line().startswith(f"take {arm}: the ")
    assert f"{taken_model.x_output_tokens_per_s:.2f}x tokens/s" in taken_model.why


@pytest.mark.parametrize(
    ("limits", "arm", "said"),
    [
        ({"speedup": 2.0}, "hybrid 50.0%", "1.50x tokens/s of 2x"),
        ({"memory": "100MiB"}, "hybrid 50.0%", "weights of 0.50 GiB, 0.09 GiB of room"),
        ({"ppl": "10%", "speedup": 1.12}, "hybrid 12.5%", "perplexity +20.0%, 10% allowed"),
    ],
)
def test_where_none_fits_the_nearest_is_named(run: Run, limits: dict[str, object], arm: str, said: str) -> None:
    taken_model = taken(run, **limits)  # type: ignore[arg-type]
    assert not taken_model.fits
    assert taken_model.arm == arm
    assert taken_model.line().startswith(f"none fits; nearest is {arm}: {said}; it has ")


def test_an_interval_that_reaches_below_is_said(run: Run) -> None:
    assert "its interval reaches below 1.24x" in taken(run, speedup=1.24).why
    assert "interval reaches" not in taken(run, speedup=1.2).why


def test_healed_models_are_candidates_and_it_is_said_how(
    healed_sweep: list[PointRecord], task: Callable[..., TaskRecord]
) -> None:
    run = Run("run-1", tuple(healed_sweep))
    assert taken(run, ppl="20%").arm == "hybrid 25.0% healed"  # perplexity 50 -> 58
    assert taken(run, ppl="45%").arm == "hybrid 25.0% healed"  # as fast as the one that is not, and loses less
    tasks = [
        task(dropped, right, healed=healed, task=name)
        for name in ("boolq", "piqa")
        for dropped, healed, right in (
            ((), False, [True] * 8),
            ((2, 3), False, [False] * 8),
            ((2, 3), True, [True, False] * 4),
        )
    ]
    chosen = recommend(run, parse_limits(None, 1.2, None), tasks)
    assert (chosen.arm, chosen.healing) == ("hybrid 25.0% healed", "fit + lora")
    assert ", healed by fit + lora on wiki.txt, -50.0 [" in chosen.why
    blind = [p.model_copy(update={"quality": None, "quality_measured_on": None}) for p in healed_sweep]
    assert taken(Run("run-1", tuple(blind)), speedup=1.2).arm == "hybrid 25.0% healed"


def test_a_draft_is_no_candidate(run: Run, point: Point) -> None:
    draft = point((2, 3), kind="draft")
    draft = draft.model_copy(update={"arm": draft.arm.model_copy(update={"label": "draft"})})
    assert taken(Run("run-1", (*run.points, draft)), speedup=1.2).arm == "hybrid 25.0%"


def test_answers_to_tasks_are_told(run: Run, task: Callable[..., TaskRecord]) -> None:
    tasks = [
        task(dropped, right, task=name)
        for name in ("boolq", "piqa")
        for dropped, right in (((), [True] * 8), ((3,), [True, False] * 4))
    ]
    taken_model = recommend(run, parse_limits("20%", None, None), tasks)
    assert ", -50.0 [" in taken_model.why
    assert taken_model.why.endswith("points on 2 tasks")


def test_each_model_is_judged_by_the_dense_model_on_its_own_text(point: Point) -> None:
    """Plans may be of several texts: another text's dense perplexity says nothing."""

    def judged(dropped: tuple[int, ...], dense: float, pruned: float) -> PointRecord:
        quality = point(dropped).quality
        assert quality is not None
        return point(
            dropped, quality=quality.model_copy(update={"dense_perplexity": dense, "pruned_perplexity": pruned})
        )

    blind = point((), quality=None, quality_measured_on=None)  # as it is where there is no one text
    mixed = Run("run-1", (blind, judged((3,), 7.0, 8.0), judged((2, 3), 12.0, 13.0)))
    assert [row.x_perplexity for row in rows_of(mixed)] == [None, pytest.approx(8 / 7), pytest.approx(13 / 12)]
    assert taken(mixed, ppl="10%").arm == "hybrid 25.0%"
    assert taken(mixed, speedup=1.1).arm == "hybrid 25.0%"  # the least loss


def test_quality_that_was_not_measured(point: Point) -> None:
    blind = Run("run-1", tuple(point(d, quality=None, quality_measured_on=None) for d in ((), (3,), (2, 3))))
    with pytest.raises(UserError, match="did not measure quality"):
        taken(blind, ppl="10%")
    assert taken(blind, speedup=1.1).arm == "hybrid 12.5%"  # fewest blocks


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((None, None, None), "give at least one of --max-ppl-increase"),
        (("x", None, None), "--max-ppl-increase must be like 10%"),
        ((None, -1.0, None), "--min-speedup must be over 0, got -1"),
        ((None, None, "24"), "--memory must be like 24GiB or 500MB, got '24'"),
        ((None, None, ""), "--memory must be like 24GiB or 500MB, got ''"),
        ((None, None, "-2GiB"), "--memory must be like"),
        ((None, None, "GiB"), "--memory must be like"),
    ],
)
def test_limits_that_are_none(options: tuple[str | None, float | None, str | None], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_limits(*options)


def test_memory_is_in_bytes() -> None:
    assert parse_limits(None, None, "24GiB").memory_bytes == 24 * 2**30
    assert parse_limits(None, None, " 1.5 gb").memory_bytes == 1_500_000_000


def test_perplexities_of_several_texts_are_said(run: Run, judged_elsewhere: Callable[..., PointRecord]) -> None:
    assert "texts" not in taken(run, speedup=1.2).why
    mixed = Run("run-1", (*run.points[:-1], judged_elsewhere(run.points[-1])))
    assert "; perplexities are of 2 texts, which do not compare: give --quality-text" in taken(mixed, speedup=1.2).why
