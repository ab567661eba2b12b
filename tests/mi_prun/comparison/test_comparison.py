"""`mi-prun compare` on the bundled model: rows, resumed rows, tables and pictures."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mi_prun.cli import app
from mi_prun.comparison import comparison
from mi_prun.comparison.comparison import parse_methods, read_rows
from mi_prun.comparison.comparison_row import MethodSpec, Row
from mi_prun.console import run_app
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.version import __version__

METHODS = "hybrid:6,mi-prun:0,bi,tail,exhaustive"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, reference: Path, harbour: Path) -> Path:
    out = tmp_path_factory.mktemp("compared") / "out"
    assert compare(reference, harbour, out, METHODS) == 0
    return out


def compare(model: Path, text: Path, out: Path, methods: str, ratios: str = ".17,.25") -> int:
    words = [str(model), "--calibration", str(text), "--tokens", "32", "--window", "32", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv", ["mi-prun", "compare", *words, "--methods", methods, "--ratios", ratios, "-o", str(out)]
        )
        patch.setattr("mi_prun.selection.baselines.EXHAUSTIVE_LIMIT", 100)
        return run_app(app)


def test_a_row_for_each_method_and_ratio(compared: Path, reference: Path) -> None:
    rows = read_rows(compared)
    assert {(row.label, len(row.dropped)) for row in rows} == {
        (label, k)
        for label in ("hybrid:6", "mi-prun:0", "bi:0", "tail:0", "exhaustive:0")
        for k in (2, 3)
        if (label, k) != ("exhaustive:0", 3)  # too many sets
    }
    assert len({row.dense_perplexity for row in rows}) == 1
    by_label = {row.label: row for row in rows if len(row.dropped) == 2}
    weights = open_model(reference).identity
    assert by_label["tail:0"].parameter_ratio == sum(weights.block_parameters[-2:]) / weights.num_parameters
    assert by_label["tail:0"].passes == 0
    assert by_label["bi:0"].passes == by_label["bi:0"].analysis_passes == 1 / 16
    assert by_label["exhaustive:0"].passes > by_label["hybrid:6"].passes > 1
    assert by_label["tail:0"].perplexity > by_label["hybrid:6"].perplexity >= by_label["exhaustive:0"].perplexity * 0.9


def test_the_model_is_opened_once_and_on_the_device_asked_for(
    reference: Path, harbour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, load = [], comparison.load_on
    monkeypatch.setattr(comparison, "load_on", lambda dense, *on: asked.append(on) or load(dense, *on))
    assert compare(reference, harbour, tmp_path / "out", "bi", ".08") == 0
    assert asked == [("cpu", None)]


def test_another_text_in_the_same_file_is_analysed_anew(reference: Path, harbour: Path, tmp_path: Path) -> None:
    """The same text in another place is not analysed again."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_bytes(harbour.read_bytes())
    assert compare(reference, text, out, "bi", ".08") == 0
    (tmp_path / "elsewhere").mkdir()
    text = text.rename(tmp_path / "elsewhere" / "text.txt")
    assert compare(reference, text, out, "bi", ".08") == 0
    assert len(read_rows(out)) == len(list(out.glob("analysis-*"))) == 1
    text.write_text(text.read_text().replace("the", "a"))
    assert compare(reference, text, out, "bi", ".08") == 0
    assert len(read_rows(out)) == len(list(out.glob("analysis-*"))) == 2


def test_tables_and_pictures_say_what_the_rows_say(compared: Path) -> None:
    rows = read_rows(compared)
    told = json.loads((compared / "comparison.json").read_text())
    for line, row in zip(told, rows, strict=True):
        derived = {"block_ratio": len(row.dropped) / 12, "passes": row.selection_passes + row.analysis_passes}
        assert line == json.loads(row.model_dump_json()) | derived
    with (compared / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    for column in ("perplexity", "block_ratio", "passes"):
        assert [float(line[column]) for line in lines] == [getattr(row, column) for row in rows]
    table = (compared / "comparison.md").read_text()
    assert "\nLeft out: exhaustive:0 at 3 of 12 blocks (220 sets, more than 100).\n" in table
    for row in rows:
        assert f"| {row.label} | {row.perplexity:,.2f} |" in table
    text = "".join(ET.parse(compared / "quality.svg").getroot().itertext())
    assert {row.label for row in rows} <= set(text.split())


def test_it_goes_on_from_the_rows_that_are_there(
    compared: Path, reference: Path, harbour: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last line cut short is made again; nothing else is, and the analysis is not either."""
    path = compared / "rows.jsonl"
    before = path.read_text()
    lines = before.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:40])
    made: list[str] = []
    import mi_prun.comparison.comparison as module

    choose = module.choose
    monkeypatch.setattr(module, "choose", lambda c, name, k, n: (made.append(name), choose(c, name, k, n))[1])
    monkeypatch.setattr(module, "analyze", lambda *a, **k: pytest.fail("analyzed again"))
    assert compare(reference, harbour, compared, METHODS) == 0
    again = read_rows(compared)
    assert len(made) == 1
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in lines[:-1]) + lines[-1].replace(__version__, "0.0.1") + "\n")
    assert compare(reference, harbour, compared, METHODS) == 0
    assert len(made) == 2  # a row of another release is made again, and counts no more
    again = read_rows(compared)[:-2] + read_rows(compared)[-1:]
    assert [(row.label, row.dropped) for row in again] == [
        (row.label, row.dropped) for row in (Row.model_validate_json(line) for line in lines)
    ]


def test_bad_words_are_one_line(
    tmp_path: Path, reference: Path, harbour: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for methods, ratios, said in (
        ("magic", ".1", "--methods 'magic': NAME must be one of hybrid"),
        ("bi,hybrid:10001", ".1", "--methods 'bi,hybrid:10001': N must be in 0..10000, got 10001"),
        ("bi:many", ".1", "must be NAME or NAME:N"),
        ("bi", "half", "--ratios 'half' must be numbers between 0 and 1"),
        ("bi", ".25,1.5", "--ratios must be in (0, 1), got 1.5"),
        (
            "exhaustive",
            ".25,.4",
            "nothing is left to compare: exhaustive:0 at 3 of 12 blocks (220 sets, ",
        ),
    ):
        assert compare(reference, harbour, tmp_path / "out", methods, ratios) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_names_take_their_own_number_of_sets() -> None:
    specs = parse_methods("hybrid, mi-prun,hybrid,cbo:3")
    assert specs == [
        MethodSpec(name="hybrid", rerank=None),
        MethodSpec(name="mi-prun", rerank=0),
        MethodSpec(name="cbo", rerank=3),
    ]


def test_rows_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"schema_version": 2}\n')
    with pytest.raises(UserError, match=r"line 1: field schema_version"):
        read_rows(tmp_path)
