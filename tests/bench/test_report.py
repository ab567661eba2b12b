"""The report: whole, well-formed, self-contained, and it says what the records say."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.plots import block_map_svg
from bench.record_v1 import RECORDS_NAME, BenchRecord, append_record
from bench.report import headline, write_report
from bench.summary import summary
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
        self.text += data


def written(folder: Path, records: Sequence[BenchRecord]) -> tuple[str, str, list[dict[str, str]]]:
    for record in records:
        append_record(folder, record)
    page, text, table = write_report(folder, folder)
    with table.open(newline="") as file:
        return page.read_text(), text.read_text(), list(csv.DictReader(file))


def test_the_page_is_well_formed_and_needs_no_network(tmp_path: Path, one_run: list[BenchRecord]) -> None:
    second = [record.model_copy(update={"run": "run-2"}) for record in one_run]
    text, _, _ = written(tmp_path, [*one_run, *second])
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
    assert page.tags.count("svg") == 2 * 3
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_it_says_what_the_records_say(tmp_path: Path, one_run: list[BenchRecord]) -> None:
    text, marks, rows = written(tmp_path, one_run)
    page = " ".join(Page(text).text.split())
    for words in (
        "12% of blocks gone: 1.12× tokens/s",
        "perplexity 50.0 → 60.0",
        "2 (25.0%)",
        "22.5%",
        "768.0",
        "1,333",
    ):
        assert words in page
        assert words in marks
    for words in (
        "AMD <EPYC>, 2 cores, 16 GiB; no GPU",
        "vllm 0.32.0",
        "mi-prun-serve --enforce-eager",
        "2,044 predicted",
    ):
        assert words in page
        assert words in marks
    assert "- 50.0%: 2, 3, 5, 6" in marks
    assert [row["dropped"] for row in rows] == ["", "3", "2 3", "2 3 5 6"]
    assert [float(row["x_output_tokens_per_s"]) for row in rows] == pytest.approx([1, 1.125, 1.25, 1.5])


def test_one_line_of_a_markdown_table_for_each_model(tmp_path: Path, one_run: list[BenchRecord]) -> None:
    _, marks, _ = written(tmp_path, one_run)
    table = [line for line in marks.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(one_run)
    assert len({line.count("|") for line in table}) == 1


def test_the_newest_run_stands_first_and_an_interrupted_one_is_left_out(
    tmp_path: Path, one_run: list[BenchRecord], record: Callable[..., BenchRecord]
) -> None:
    newer = [item.model_copy(update={"run": "run-2", "dense_model": "owner/newer"}) for item in one_run[:2]]
    text, _, rows = written(tmp_path, [*one_run, *newer, record((1,), run="run-3")])
    assert text.index("owner/newer: dense against pruned") < text.index("owner/dense: dense against pruned")
    assert list(dict.fromkeys(row["run"] for row in rows)) == ["run-2", "run-1"]


def test_names_cannot_write_into_the_page(tmp_path: Path, one_run: list[BenchRecord]) -> None:
    text, _, _ = written(tmp_path, [item.model_copy(update={"dense_model": "<script>x"}) for item in one_run])
    assert "<script>" not in text
    assert "&lt;script&gt;x" in text


def test_a_small_model_is_said_to_show_nothing_of_speed(tmp_path: Path, one_run: list[BenchRecord]) -> None:
    small = [
        item.model_copy(update={"memory": item.memory.model_copy(update={"weight_bytes": 18 << 20})})
        for item in one_run
    ]
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    text, marks, _ = written(tmp_path / "small", small)
    assert "say nothing about larger models" in " ".join(text.split())
    assert "say nothing about larger models" in marks
    assert "say nothing" not in written(tmp_path / "large", one_run)[0]


def test_without_quality_there_is_no_plot(tmp_path: Path, record: Callable[..., BenchRecord]) -> None:
    text, marks, _ = written(tmp_path, [record(), record((1,), quality=False)])
    assert "Quality against speed" not in text
    assert "not measured" in text
    assert "not measured" in marks


def test_the_headline_takes_the_largest_ratio_at_a_fair_price(
    one_run: list[BenchRecord], record: Callable[..., BenchRecord]
) -> None:
    assert headline(summary(one_run)).startswith("12% of blocks gone")
    assert headline(summary([record(), record((1, 2), quality=False)])).endswith("1.33× KV tokens")
    assert headline(summary([record()])) == "Only the dense model was measured."


@pytest.mark.parametrize("num_blocks", [1, 12, 48, 126])
def test_the_block_map_has_a_cell_for_each_block(one_run: list[BenchRecord], num_blocks: int) -> None:
    rows = summary(one_run)
    svg = block_map_svg(rows, num_blocks)
    Page(svg)
    assert svg.count("<rect") == len(rows) * num_blocks
    assert svg.count(": dropped</title>") == sum(block < num_blocks for row in rows for block in row.dropped)


def test_results_without_a_report(tmp_path: Path, record: Callable[..., BenchRecord]) -> None:
    with pytest.raises(UserError, match="make some with"):
        write_report(tmp_path, tmp_path)
    (tmp_path / RECORDS_NAME).touch()
    with pytest.raises(UserError, match="holds no record yet"):
        write_report(tmp_path, tmp_path)
    append_record(tmp_path, record((1,)))
    with pytest.raises(UserError, match="all were interrupted"):
        write_report(tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS_NAME]
