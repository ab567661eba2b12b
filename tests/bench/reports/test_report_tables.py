"""The tables of the report: what stands in a cell, and when a table is not there."""

from __future__ import annotations

from collections.abc import Callable

from bench.records.results import Run
from bench.records.schema import DraftAcceptance, PointRecord, Selection
from bench.records.task_schema import TaskRecord
from bench.records.task_summary import mean_rows, task_rows
from bench.reports.report_tables import (
    Cell,
    Table,
    at_most,
    drafts_table,
    interval,
    lines_of,
    loads_table,
    main_table,
    number,
    other_scores,
    percentile_tables,
    roofline_table,
    rooflines,
    tasks_table,
)

Point = Callable[..., PointRecord]
Task = Callable[..., TaskRecord]


def column(table: Table, name: str) -> list[Cell]:
    place = [head for head, _ in table.head].index(name)
    return [row[place] for row in table.rows]


def under(point: PointRecord, concurrency: int | None, rate: float | None = None) -> PointRecord:
    load = point.load.model_copy(update={"concurrency": concurrency, "rate_per_s": rate})
    return point.model_copy(update={"load": load})


def draft(point: Point, **fields: object) -> PointRecord:
    made = point((2, 3), kind="draft", **fields)
    return made.model_copy(update={"arm": made.arm.model_copy(update={"label": "draft", "draft_tokens": 4})})


def test_a_table_as_markdown() -> None:
    head = (("Model", ""), ("Speed", "× dense"))
    rows = ((Cell("a|b"), Cell("1.25", "[1.23,\n1.27]")), (Cell("<i>x"), Cell("")))
    assert Table("A title", head, rows, "A note.").markdown() == [
        "### A title",
        "",
        "| Model | Speed, × dense |",
        "| ---: | ---: |",
        "| a\\|b | 1.25 [1.23, 1.27] |",  # a cell is one line
        "| &lt;i>x |  |",
        "",
        "A note.",
        "",
    ]


def test_a_table_without_rows_or_a_note() -> None:
    assert Table("Empty", (("Model", ""),), ()).markdown() == ["### Empty", "", "| Model |", "| ---: |", ""]


def test_figures_that_are_missing() -> None:
    assert (interval(None, None), interval(1.0, None), interval(None, 1.0)) == ("", "", "")
    assert (interval(0.9, 1.1), interval(-0.25, 0.5, "+.1f")) == ("[0.90, 1.10]", "[-0.2, +0.5]")
    assert (at_most(None), at_most(4 / 3)) == ("", "at most 1.33")
    assert (number(None, ".2f"), number(None, ".2f", "–"), number(0.0, ".2f")) == ("not measured", "–", "0.00")
    assert (lines_of("a", "", "b"), lines_of("", ""), lines_of()) == ("a\nb", "", "")
    assert (Cell("a", "b\nc").plain(), Cell("a").plain(), Cell("").plain()) == ("a b\nc", "a", "")


def test_the_main_table_has_a_row_for_each_model_under_the_main_load(one_sweep: list[PointRecord]) -> None:
    more = [under(point, 64) for point in one_sweep]
    table = main_table(Run("run-1", (*one_sweep, *more)))
    assert table.title == "Every model, chat, 4 in flight"
    assert [cell.plain() for cell in column(table, "Model")] == [
        "dense",
        "hybrid 12.5% 1 block dropped",
        "hybrid 25.0% 2 blocks dropped",
        "hybrid 50.0% 4 blocks dropped",
    ]
    assert column(table, "Perplexity")[:2] == [Cell("50.00"), Cell("60.00", "× 1.20")]
    assert column(table, "Speed")[:2] == [
        Cell("1.00", strong=True),
        Cell("1.12", "[1.10, 1.15]\nat most 1.14", strong=True),
    ]
    assert column(table, "Output")[0] == Cell("100.0", "95.0–110.0")
    assert column(table, "Weights")[1] == Cell("896.0", "0.88×")
    assert column(table, "Requests that fit")[0] == Cell("520.8")
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert not {"Peak device", "Energy"} & {name for name, _ in table.head}
    assert table.note.startswith("128 tokens in, 64 out. ")


def test_a_gpus_figures_have_columns_of_their_own(point: Point) -> None:
    on_gpu = point().memory.model_copy(update={"peak_device_bytes": 3 << 30, "engine_weight_bytes": 1 << 30})
    rounds = tuple(each.model_copy(update={"energy_j": 1500.0}) for each in point().speed.rounds)
    speed = point().speed.model_copy(update={"rounds": rounds})
    table = main_table(Run("run-1", (point(memory=on_gpu, speed=speed), point((3,)))))
    assert [cell.text for cell in column(table, "Peak device")] == ["3,072", "0"]
    assert [cell.text for cell in column(table, "Energy")] == ["1,500", "not measured"]
    assert column(table, "Weights")[0].more == "1.00×\n1,024.0 loaded"


def test_one_round_has_no_spread_and_a_mean_length_is_said_to_be_one(point: Point) -> None:
    speed = point().speed.model_copy(update={"rounds": point().speed.rounds[:1]})
    made = point(speed=speed)
    made = made.model_copy(update={"load": made.load.model_copy(update={"input_tokens": 1234.5})})
    table = main_table(Run("run-1", (made,)))
    assert column(table, "Output") == [Cell("95.0")]
    assert table.note.startswith("1,234.5 (mean) tokens in, 64 out. ")


def test_a_draft_answers_as_dense(point: Point) -> None:
    made = draft(point, quality=None, quality_measured_on=None)
    table = main_table(Run("run-1", (point(), made)))
    assert column(table, "Perplexity")[1] == Cell("as dense")
    assert column(table, "KL to dense")[1] == Cell("–")


def test_one_load_has_no_table_of_loads(one_sweep: list[PointRecord]) -> None:
    assert loads_table(Run("run-1", tuple(one_sweep))) is None


def test_every_load_has_a_row_and_what_was_not_measured_a_dash(point: Point) -> None:
    growing = tuple(each.model_copy(update={"backlog_growth": 0.5}) for each in point().speed.rounds)
    opened = under(point(speed=point().speed.model_copy(update={"rounds": growing})), None, 2.0)
    points = (point(), point((3,)), point((2, 3)), opened, under(point((3,)), None, 2.0), under(point((3,)), 99))
    table = loads_table(Run("run-1", points))
    assert table is not None
    assert table.head == (("Load", ""), ("dense", "tokens/s"), ("hybrid 12.5%", "× dense"), ("hybrid 25.0%", "× dense"))
    assert table.rows == (
        (
            Cell("chat, 4 in flight"),
            Cell("100.0"),
            Cell("1.12", "[1.10, 1.15]\nat most 1.14"),
            Cell("1.25", "[1.23, 1.27]\nat most 1.33"),
        ),
        (Cell("chat, 2 requests/s"), Cell("100.0", "saturated"), table.rows[0][2], Cell("–")),
    )  # and no row of a load without the dense model


def test_each_load_has_a_table_of_percentiles(point: Point) -> None:
    run = Run("run-1", (point(), point((2, 3)), under(point(), 64)))
    first, second = percentile_tables(run)
    assert (first.title, second.title) == ("Latency, chat, 4 in flight", "Latency, chat, 64 in flight")
    assert [name for name, _ in first.head] == ["Model", "TTFT", "TPOT", "ITL", "End to end"]
    assert [cell.text for cell in first.rows[1]] == [
        "hybrid 25.0%",
        "6.4 / 9.6 / 12.8",
        "6.40 / 9.60 / 12.80",
        "6.40 / 9.60 / 12.80",
        "6 / 10 / 13",
    ]
    assert len(second.rows) == 1


def test_rooflines_stand_by_phase_then_batch_then_arm(point: Point) -> None:
    def shown(dropped: tuple[int, ...], *phases: tuple[str, int]) -> PointRecord:
        made = point(dropped)
        roofs = [made.roofline[0].model_copy(update={"phase": phase, "batch": batch}) for phase, batch in phases]
        return made.model_copy(update={"roofline": tuple(roofs)})

    run = Run(
        "run-1", (shown((2, 3), ("decode", 8), ("decode", 1)), shown((3,), ("decode", 1), ("prefill", 8)), point())
    )
    assert [(roof.phase, roof.batch, record.arm.label) for record, roof in rooflines(run)] == [
        ("prefill", 8, "hybrid 12.5%"),
        ("decode", 1, "hybrid 12.5%"),
        ("decode", 1, "hybrid 25.0%"),
        ("decode", 8, "hybrid 25.0%"),
    ]
    table = roofline_table(run)
    assert table is not None
    assert [name for name, _ in table.head] == ["Phase", "hybrid 12.5%", "hybrid 25.0%"]
    assert [row[0].plain() for row in table.rows] == [
        "prefill, batch 8 chat",
        "decode, batch 1 chat",
        "decode, batch 8 chat",
    ]
    # 1.125 of 8/7, and 1.25 of 4/3.
    assert table.rows[1][1:] == (Cell("98.4%", "1.125 of 1.143"), Cell("93.8%", "1.250 of 1.333"))
    assert table.rows[2][1] == Cell("–")
    assert roofline_table(Run("run-1", (point(),))) is None


def test_drafts_have_a_table_of_their_own(point: Point) -> None:
    accepted = draft(point, acceptance=DraftAcceptance(drafts=10, drafted_tokens=40, accepted_tokens=30))
    table = drafts_table(Run("run-1", (point(), point((3,)), accepted)))
    assert table is not None
    name, load = Cell("draft", "2 blocks dropped"), Cell(point().load.label)
    speed = Cell("1.25", "[1.23, 1.27]\nat most 1.33")
    assert table.rows == ((name, load, Cell("4"), Cell("75.0%"), Cell("4.00"), speed),)
    unknown = drafts_table(Run("run-1", (point(), draft(point))))
    assert unknown is not None
    assert unknown.rows[0][3:5] == (Cell("not measured"), Cell("not measured"))
    assert drafts_table(Run("run-1", (point(), point((3,))))) is None


def test_a_draft_in_every_closed_loop(point: Point) -> None:
    points = [under(each, *load) for load in ((1,), (4,), (None, 2.0)) for each in (point(), draft(point))]
    table = drafts_table(Run("run-1", tuple(points)))
    assert table is not None
    assert [row[1].text for row in table.rows] == [points[0].load.label, points[2].load.label]


def test_what_a_plan_predicted_stands_below_what_was_measured(point: Point) -> None:
    """Half of the tokens accepted, a step at half the cost; 4 tokens at a time, whatever the plan says is best."""
    said = {"for": "draft", "draft_tokens": 1, "acceptance_greedy": 0.5, "relative_cost": 0.5}
    table = drafts_table(Run("run-1", (point(), draft(point, selection=Selection(plan_sha256="0", settings=said)))))
    assert table is not None
    length = 1 + 0.5 + 0.25 + 0.125 + 0.0625
    assert [cell.more.splitlines()[-1:] for cell in table.rows[0][3:]] == [
        [f"predicted {0.9375 / 4:.1%}"],
        [f"predicted {length:.2f}"],
        [f"predicted {length / 3:.2f}"],
    ]


def test_tasks_have_a_column_each_and_a_mean_where_there_are_several(task: Task) -> None:
    right, wrong = [True] * 40, [False] * 40
    records = [
        task((), right),
        task((), right, task="piqa"),
        task((3,), wrong),
        task((3,), right, task="piqa", items_sha256="4" * 64),
        task((2, 3), right),
    ]
    rows = task_rows(records)
    table = tasks_table(rows, mean_rows(rows))
    assert table is not None
    assert table.head == (("Model", ""), ("boolq", "acc, n=40"), ("piqa", "acc, n=40"), ("Mean", ""))
    dense, worse, same = table.rows
    assert dense == (Cell("dense"), Cell("100.0"), Cell("100.0"), Cell("100.0"))
    assert (worse[1].text, worse[1].strong) == ("0.0", True)
    assert worse[1].more.startswith("-100.0 [-1")
    assert worse[2:] == (Cell("100.0", "no pairs"), Cell("–"))  # other items; one pair has no mean
    assert (same[1].text, same[1].strong, same[2]) == ("100.0", False, Cell("–"))
    assert tasks_table([], []) is None


def test_a_mean_beyond_noise_is_strong(task: Task) -> None:
    records = [task(dropped, [not dropped] * 40, task=name) for name in ("boolq", "piqa") for dropped in ((), (3,))]
    rows = task_rows(records)
    table = tasks_table(rows, mean_rows(rows))
    assert table is not None
    mean = table.rows[1][-1]
    assert (mean.text, mean.more[:8], mean.strong) == ("0.0", "-100.0 [", True)


def test_scores_beside_the_one_that_is_compared(task: Task) -> None:
    more = task((3,), scores={"acc": 0.5, "acc_norm": 0.25, "perplexity": 12345.678})
    assert other_scores([task(), more]) == ["hybrid 12.5%, boolq: acc_norm 0.25, perplexity 1.235e+04"]
    assert other_scores([]) == []


def test_a_score_or_a_mean_of_fewer_says_so(task: Task) -> None:
    records = [task((), [True] * 40, task=name) for name in ("boolq", "piqa", "winogrande")]
    records += [task((3,), [True] * 40, task=name) for name in ("boolq", "piqa")]
    records += [task((3,), [True] * 80, task="winogrande", items_sha256="4" * 64)]
    rows = task_rows(records)
    table = tasks_table(rows, mean_rows(rows))
    assert table is not None
    dense, pruned = table.rows
    assert dense[-1] == Cell("100.0")
    assert pruned[3] == Cell("100.0", "n=80\nno pairs")
    assert pruned[-1].more.endswith("\nof 2 tasks")
