"""The report: whole, well-formed, self-contained, and it says what the records say."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.records.results import Run
from bench.records.schema import POINTS_NAME, PointRecord, Speed, append_record
from bench.records.task_schema import GENERATIONS_NAME, TASKS_NAME, GenerationRecord, TaskRecord
from bench.reports.plots import block_map_svg, curve_groups, speed_arms
from bench.reports.report import write_report
from mi_prun.errors import UserError

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text, ids and whatever refers to something outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.refers += [value or "" for name, value in attrs if name in ("href", "xlink:href", "src", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


Point = Callable[..., PointRecord]


def written(
    folder: Path,
    points: Sequence[PointRecord],
    tasks: Sequence[TaskRecord] = (),
    generations: Sequence[GenerationRecord] = (),
) -> tuple[str, str, list[dict[str, str]]]:
    folder.mkdir(exist_ok=True)
    for name, records in ((POINTS_NAME, points), (TASKS_NAME, tasks), (GENERATIONS_NAME, generations)):
        for record in records:
            append_record(folder, record, name)
    page, text, table = write_report(folder, folder)
    with table.open(newline="") as file:
        return page.read_text(), text.read_text(), list(csv.DictReader(file))


def many_loads(point: Point) -> list[PointRecord]:
    """Three numbers of requests in flight, two methods, a draft."""
    shown = []
    for in_flight in (1, 8, 64):
        for dropped, kind in (((), None), ((3,), None), ((2, 3), None), ((2, 3), "draft")):
            made = point(dropped, kind=kind)
            arm = made.arm.model_copy(update={"label": f"draft {made.arm.label}"}) if kind else made.arm
            load = made.load.model_copy(update={"concurrency": in_flight})
            shown.append(made.model_copy(update={"arm": arm, "load": load}))
    return shown


def test_the_page_is_well_formed_and_needs_no_network(
    tmp_path: Path,
    one_sweep: list[PointRecord],
    task: Callable[..., TaskRecord],
    generation: Callable[..., GenerationRecord],
) -> None:
    second = [point.model_copy(update={"run": "run-2"}) for point in one_sweep]
    text, _, _ = written(
        tmp_path,
        [*one_sweep, *second],
        [task(), task((3,), [True, False, False, True])],
        [generation((), "a"), generation((3,), "b")],
    )
    page = Page(text)
    assert all(reference.startswith("#") for reference in page.refers)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in text
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))
    # The only addresses are the names of SVG's namespaces, which nothing fetches.
    assert set(re.findall(r"https?://[^\"' )]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.refers} <= set(page.ids)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    # Every colour of a picture is the page's: nothing is black on black.
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): ?#[0-9a-f]{6}", pictures)


def test_it_says_what_the_points_say(tmp_path: Path, one_sweep: list[PointRecord]) -> None:
    text, marks, rows = written(tmp_path, one_sweep)
    page = " ".join(Page(text).text.split())
    for words in (
        "12.5% of blocks gone: 1.12× tokens/s",
        "perplexity 50.0 → 60.0",
        "2 blocks dropped",
        "1.12× tokens/s [1.10, 1.15]",  # in the headline
        "1.25 [1.23, 1.27] at most 1.33",
        "100.0 95.0–110.0",
        "6.4 / 9.6 / 12.8",  # TTFT of 25 %, p50, p90, p99
        "6.40 / 9.60 / 12.80",
        "520.8",  # requests of 192 tokens
        "hybrid, calibration text books.txt, 25 to 28 candidates compared by their loss, seed 7",
        "ratios 0,.125,.25,.5",
        "768.0",
        "133,333",
        "93.8%",  # 1.25 of a bound of 1.333
        "1.250 of 1.333",
        "2,044 predicted",
        "mi-prun-serve --enforce-eager; OMP_NUM_THREADS=1",
        "vllm 0.32.0",
    ):
        assert words in page, words
        assert words in marks.replace("\\", ""), words
    assert "AMD <EPYC>, 2 cores, 16 GiB; no GPU" in page
    assert "AMD \\<EPYC>, 2 cores" in marks
    assert "- hybrid 50.0%: 2, 3, 5, 6" in marks
    assert [row["dropped"] for row in rows] == ["", "3", "2 3", "2 3 5 6"]
    assert [float(row["x_output_tokens_per_s"]) for row in rows] == pytest.approx([1, 1.125, 1.25, 1.5])
    assert [row["x_low"] for row in rows[:2]] == ["", "1.105"]
    assert [float(row["x_bound"] or 0) for row in rows] == pytest.approx([0, 8 / 7, 8 / 6, 2])
    assert (rows[0]["length_tokens"], rows[0]["engine_weight_bytes"], rows[0]["rounds"]) == ("192", "", "3")
    assert [float(rows[0][f"{end}_output_tokens_per_s"]) for end in ("min", "max")] == [95, 110]
    assert "Requests that fit of 192 tokens" in page
    assert "| Requests that fit, of 192 tokens |" in marks


def test_one_line_of_a_markdown_table_for_each_model(tmp_path: Path, one_sweep: list[PointRecord]) -> None:
    _, marks, _ = written(tmp_path, one_sweep)
    table = marks.split("### Every model")[1].split("###")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(one_sweep)
    assert len({line.count("|") for line in lines}) == 1


def test_the_newest_run_stands_first_and_an_interrupted_one_is_left_out(
    tmp_path: Path, one_sweep: list[PointRecord], point: Point
) -> None:
    dense = one_sweep[0].dense.model_copy(update={"name": "owner/newer", "weights_sha256": "9" * 64})
    newer = [item.model_copy(update={"run": "run-2", "dense": dense}) for item in one_sweep[:2]]
    text, _, rows = written(tmp_path, [*one_sweep, *newer, point((1,), run="run-3")])
    assert text.index("owner/newer: dense against pruned") < text.index("owner/dense: dense against pruned")
    assert list(dict.fromkeys(row["run"] for row in rows)) == ["run-2", "run-1"]


def test_what_a_model_or_a_name_says_cannot_write_into_the_page(
    tmp_path: Path,
    one_sweep: list[PointRecord],
    generation: Callable[..., GenerationRecord],
) -> None:
    evil = "</p><script>alert(1)</script> ```\n# loud | $x$ &amp;"
    dense = one_sweep[0].dense.model_copy(update={"name": "<script>x"})
    arms = [
        item.model_copy(
            update={"dense": dense, "arm": item.arm.model_copy(update={"label": f"{item.arm.label} <b>$_$|"})}
        )
        for item in one_sweep
    ]
    text, marks, _ = written(tmp_path, arms, (), [generation((), evil), generation((3,), "plain")])
    page = Page(text)
    assert not {"script", "b"} & set(page.tags)
    assert "alert(1)</script> ```\n# loud | $x$ &amp;" in page.text  # shown as it was written
    assert "````text\n</p><script>" in marks
    assert all(
        line.count("|") - line.count("\\|") == line.count(" | ") + 2
        for line in marks.splitlines()
        if line.startswith("| ")
    )


def test_answers_stand_side_by_side(
    tmp_path: Path,
    one_sweep: list[PointRecord],
    generation: Callable[..., GenerationRecord],
) -> None:
    old, new = generation((3,), "an older answer"), generation((3,), "there was a king")
    text, marks, _ = written(tmp_path, one_sweep, (), [old, new, generation((), "there was a queen")])
    words = " ".join(Page(text).text.split())
    assert "Once <upon> dense there was a queen hybrid 12.5% there was a king" in words
    assert "an older answer" not in text
    assert marks.index("there was a queen") < marks.index("there was a king")


def test_tasks_are_paired_in_the_report(
    tmp_path: Path, one_sweep: list[PointRecord], task: Callable[..., TaskRecord]
) -> None:
    dense = task((), [True] * 40)
    worse = task((3,), [True] * 20 + [False] * 20, truncated_items=10, scores={"acc": 0.5, "acc_norm": 0.25})
    text, marks, _ = written(tmp_path, one_sweep, [dense, worse])
    words = " ".join(Page(text).text.split())
    assert "Tasks against dense" in words
    assert re.search(r"hybrid 12\.5% 50\.0 -50\.0 \[-6\d\.\d, -3\d\.\d\]", words)
    assert "cut off the beginning of up to 25% of a task's items: boolq" in words
    assert "hybrid 12.5%, boolq: acc_norm 0.25" in words
    assert "-50.0 [" in marks


def test_a_folder_with_tasks_only(tmp_path: Path, task: Callable[..., TaskRecord]) -> None:
    one = [task(), task((3,), [False] * 4)]
    text, marks, rows = written(tmp_path / "one", (), one)
    assert "nothing was measured under load" in text
    assert "-75.0 [" in marks
    assert rows == []
    both = [*one, task(task="piqa"), task((3,), [True, False, False, True], task="piqa")]
    text, marks, _ = written(tmp_path / "both", (), both)
    assert "12.5% of blocks gone: -50.0 points of right answers [" in text
    assert "on 2 tasks**" in marks.replace("\\", "")


def test_curves_need_two_loads_and_draw_one_model_of_each_size(tmp_path: Path, point: Point) -> None:
    points = many_loads(point)
    run = Run("run-1", tuple(points))
    (group,) = curve_groups(run)
    assert [load.concurrency for load in group] == [1, 8, 64]
    assert [arm.label for arm in speed_arms(run)] == ["dense", "hybrid 12.5%", "hybrid 25.0%", "draft hybrid 25.0%"]
    text, marks, rows = written(tmp_path, points)
    assert "Latency against throughput: chat" in text
    assert "### Speed under every load" in marks
    assert len(rows) == len(points)
    one_load = points[:4]
    assert curve_groups(Run("run-1", tuple(one_load))) == []
    assert "Latency against throughput" not in written(tmp_path / "one", one_load)[0]


def test_a_small_model_is_said_to_show_nothing_of_speed(tmp_path: Path, one_sweep: list[PointRecord]) -> None:
    small = [
        item.model_copy(update={"memory": item.memory.model_copy(update={"weight_bytes": 18 << 20})})
        for item in one_sweep
    ]
    text, marks, _ = written(tmp_path / "small", small)
    assert "say nothing about larger models" in " ".join(text.split())
    assert "say nothing about larger models" in marks
    assert "say nothing" not in written(tmp_path / "large", one_sweep)[0]


def test_what_is_no_measurement_of_the_blocks_is_said(tmp_path: Path, one_sweep: list[PointRecord]) -> None:
    above = [*one_sweep[:2], one_sweep[2].model_copy(update={"bound": 1.2}), one_sweep[3]]  # at least 1.23x
    text, marks, _ = written(tmp_path / "above", above)
    said = (
        "More than can be, so no measurement of the blocks: hybrid 25.0%, chat, 4 in flight: tokens/s at least 1.230x"
    )
    assert said in text
    assert said in marks
    assert "More than can be" not in written(tmp_path / "below", one_sweep)[0]


def test_few_rounds_and_rates_that_saturate_nothing_are_said(tmp_path: Path, one_sweep: list[PointRecord]) -> None:
    def rounds(point: PointRecord, count: int, growth: float | None) -> PointRecord:
        own = tuple(one.model_copy(update={"backlog_growth": growth}) for one in point.speed.rounds[:count])
        return point.model_copy(update={"speed": Speed(rounds=own)})

    def opened(point: PointRecord) -> PointRecord:
        return point.model_copy(
            update={"load": point.load.model_copy(update={"concurrency": None, "rate_per_s": 2.0}), "roofline": ()}
        )

    few = [rounds(point, 2, None) for point in one_sweep]
    assert "fewer than 3 rounds tell little" in written(tmp_path / "few", few)[0]
    for growth, said in (
        (0.5, "Requests arrived faster than they were answered: chat, 2 requests/s."),
        (0.0, "No rate was"),
    ):
        points = [*one_sweep, *(rounds(opened(point), 3, growth) for point in one_sweep)]
        text, marks, _ = written(tmp_path / str(growth), points)
        assert said in text
        assert ("[1.23, 1.27] at most 1.33 saturated" in marks) == (growth > 0)
        assert "fewer than" not in text
        assert "### Latency, chat, 2 requests/s" in marks


def test_a_shape_is_said_to_have_no_quality(tmp_path: Path, point: Point) -> None:
    dense = point().dense.model_copy(update={"shape": "qwen2.5-0.5b", "weights_sha256": None})
    points = [point(dropped, dense=dense, quality=None, quality_measured_on=None) for dropped in ((), (3,))]
    text, marks, _ = written(tmp_path, points)
    assert "The weights are random: qwen2.5-0.5b is a shape" in text
    assert "Quality against speed" not in text
    assert "not measured" in marks


@pytest.mark.parametrize("num_blocks", [1, 12, 48, 126])
def test_the_block_map_has_a_cell_for_each_block(one_sweep: list[PointRecord], num_blocks: int) -> None:
    arms = [
        point.arm.model_copy(update={"blocks": point.arm.blocks.model_copy(update={"num_blocks": num_blocks})})
        for point in one_sweep
    ]
    svg = block_map_svg(arms)
    Page(svg)
    assert svg.count("<rect") == len(arms) * num_blocks
    assert svg.count(": dropped</title>") == sum(block < num_blocks for arm in arms for block in arm.blocks.dropped)


def test_results_without_a_report(tmp_path: Path, point: Point) -> None:
    with pytest.raises(UserError, match="make some with"):
        write_report(tmp_path, tmp_path)
    (tmp_path / POINTS_NAME).touch()
    with pytest.raises(UserError, match="holds no record yet"):
        write_report(tmp_path, tmp_path)
    append_record(tmp_path, point((1,)))
    with pytest.raises(UserError, match="all were interrupted"):
        write_report(tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [POINTS_NAME]
