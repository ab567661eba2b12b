"""The page of the selection study, from records made up for it: what it says, and where it has nothing to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.records.schema import Machine
from bench.studies.selection_group import Group
from bench.studies.selection_report import main, page, read_groups
from bench.studies.selection_study import Confirmed, StudyRow, confirmed_path, read_confirmed
from mi_prun.errors import UserError

MACHINE = Machine(cpu="c", cores=2, memory_bytes=1, gpu=None, system="s")
MadeRow = Callable[..., StudyRow]


def confirmed(**fields: Any) -> Confirmed:
    values: dict[str, Any] = {
        "tokens": 5000,
        "window_tokens": 10,
        "perplexity": {"": 8.0, "0": 12.0, "1": 13.0, "3": 10.0},
        "machine": MACHINE,
        "versions": {},
        "commit": None,
    }
    return Confirmed(**(values | fields))


def line_of(text: str, label: str) -> list[str]:
    """The cells of the first line of a method, which is that of all cases together."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_has_the_passes_of_each_k_and_a_dash_for_what_one_text_does_not_tell(row: MadeRow) -> None:
    rows = [row(name, seed, 11.0, (*range(k),), k) for name in ("greedy-loss", "b") for seed in (0, 1) for k in (1, 2)]
    text = page([Group(rows)])
    assert "| method | k=1 | k=2 | Jaccard over texts | spread over texts |" in text
    assert "| b:0 | 1.25 | 2.25 | - | - |" in text


def test_the_figures_of_all_cases_together(row: MadeRow) -> None:
    """Ratios of 1.1 and 1.3, and of 1 and 1.2: the second method is better on each seed."""
    rows = [row(seed=seed, perplexity=p, passes=4.0) for seed, p in enumerate((11.0, 13.0))]
    rows += [row("b", seed, p, (seed,)) for seed, p in enumerate((10.0, 12.0))]
    text = page([Group(rows)])
    # Cases, first, first within error, mean rank, near, mean, 95th percentile, worst mean, worst, Jaccard x 2, spread.
    greedy, other = line_of(text, "greedy-loss:0"), line_of(text, "b:0")
    assert greedy[1:7] == ["1", "0%", "0%", "2.0", "0%", "1.200"]
    assert other[1:7] == ["1", "100%", "100%", "1.0", "50%", "1.100"]
    assert greedy[7:10] == ["1.300", "1.200", "1.300"]  # a percentile of two is no more than the larger one
    assert other[7:10] == ["1.200", "1.100", "1.200"]
    assert (greedy[10:13], other[10:13]) == (["1.00", "-", "-"], ["0.00", "-", "-"])
    assert (greedy[13], other[13]) == ("1.00 (L=4)", f"{1.25 / 4.25:.2f} (L=4)")
    assert text.index("| b:0 |") < text.index("| greedy-loss:0 |")  # the best first
    assert "Each of 2 seeds has a text of its own" in text
    assert "Made on c, 2 cores (torch 2, transformers 5): 4 choices." in text
    assert "- Dense perplexity: 9.00 on 1,000 tokens.\n- Ranking text: 4,000 tokens, 1,000 for the one pass" in text


def test_one_choice_is_a_page(row: MadeRow) -> None:
    """One seed and one k have no percentile but the value itself."""
    cells = line_of(page([Group([row()])]), "greedy-loss:0")
    assert cells[6:10] == ["1.100"] * 4
    assert cells[10] == "-"


def test_a_study_without_greedy_loss_has_no_share_of_its_passes(row: MadeRow) -> None:
    assert line_of(page([Group([row("b", seed) for seed in (0, 1)])]), "b:0")[13] == "- (L=4)"


def test_where_no_optimum_is_known_there_is_no_ratio_to_it(row: MadeRow) -> None:
    rows = [row(seed=seed, optimum_perplexity=None, optimum_dropped=None) for seed in (0, 1)]
    text = page([Group(rows)])
    assert line_of(text, "greedy-loss:0")[5:10] == ["100%", "-", "-", "-", "-"]  # it is the best set known itself
    assert "| method | k=1* | Jaccard |" in text
    assert " k*: to the best set known." in text


def test_the_machines_stand_by_how_much_they_made(row: MadeRow) -> None:
    gpu = MACHINE.model_copy(update={"gpu": "H100"})
    rows = [row(seed=seed, machine=gpu if seed > 1 else MACHINE) for seed in range(5)]
    said = "Made on H100 (torch 2, transformers 5): 3 choices; c, 2 cores (torch 2, transformers 5): 2 choices."
    assert said in page([Group(rows)])


def test_confirmed_figures_are_said_to_be_that(row: MadeRow) -> None:
    rows = [row(seed=seed) for seed in (0, 1)]
    plain = page([Group(rows)])
    assert "That error is known for none; elsewhere it is taken as 0." in plain
    assert "confirming text.\n- Ranking" not in plain
    known = page([Group(rows, confirmed(error_nats={"0": 0.1}))])
    assert "That error" not in known
    assert "- Dense perplexity: 8.00 on 5,000 tokens of confirming text.\n" in known
    assert "1.200 ± 0.000 (1)" in known  # 12 of 10
    both = page([Group(rows), Group([row(text="wiki")], confirmed(error_nats={"0": 0.1}))])
    assert "That error is known for four on wiki; elsewhere it is taken as 0." in both


def test_sets_that_were_measured_in_part_are_counted(row: MadeRow) -> None:
    text = page([Group([row(seed=seed) for seed in (0, 1)], confirmed(in_part={"0": 800, "1": 1000}))])
    assert "(2 sets were clearly behind on the first 1,000 and were measured on those only)" in text


def write(folder: Path, name: str, *rows: StudyRow) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(each.model_dump_json() + "\n" for each in rows))
    return path


def test_groups_are_read_the_smallest_models_first(tmp_path: Path, row: MadeRow) -> None:
    def of(blocks: int, **fields: str) -> StudyRow:
        made = row(**fields)
        return made.model_copy(update={"row": made.row.model_copy(update={"num_blocks": blocks})})

    write(tmp_path, "a", of(12, model="large"))
    write(tmp_path, "b", of(4, model="small", text="wiki"))
    path = write(tmp_path, "c", of(4, model="small", text="books"))
    write(tmp_path, "empty")
    confirmed_path(path).write_text(confirmed().model_dump_json())
    groups = read_groups(tmp_path)
    assert [(group.model, group.text) for group in groups] == [
        ("small", "books"),
        ("small", "wiki"),
        ("large", "books"),
    ]
    assert [group.confirmed is not None for group in groups] == [True, False, False]
    assert read_confirmed(path) == confirmed()
    assert read_confirmed(tmp_path / "a.jsonl") is None
    confirmed_path(path).write_text("{")
    with pytest.raises(UserError, match=r"confirmed.json cannot be read .*; move it away"):
        read_confirmed(path)


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], object]:
    def call(folder: Path) -> object:
        words = ["report", str(folder), "-o", str(tmp_path / "docs" / "page.md")]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return call


def test_the_page_and_its_pictures_are_written(tmp_path: Path, status: Callable[[Path], object], row: MadeRow) -> None:
    write(tmp_path, "four", row(seed=0), row(seed=1))
    assert status(tmp_path) == 0
    text = (tmp_path / "docs" / "page.md").read_text()
    assert text == page(read_groups(tmp_path))
    assert "](selection-study/four.books.svg)" in text
    assert "<svg" in (tmp_path / "docs" / "selection-study" / "four.books.svg").read_text()


def test_a_folder_without_records_is_said(
    tmp_path: Path, status: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="has no records; make some with"):
        read_groups(tmp_path)
    assert status(tmp_path) == 2
    assert "has no records" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
