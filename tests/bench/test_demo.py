"""The demo's parts that need no engine: its model, its text, its table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import demo
from bench.demo import Answers, Progress, library_docstrings, model_folder, python_reference, summary
from bench.records.schema import PointRecord, read_lines

PUBLISHED = Path(__file__).parents[2] / "bench" / "published" / "sweep" / "reference"


def test_where_the_package_is_missing_it_is_the_bundled_model_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert model_folder() == str(demo.REFERENCE)
    assert "takes the bundled model" in capsys.readouterr().out


def test_the_text_that_judges_comes_with_python(tmp_path: Path) -> None:
    text = python_reference(tmp_path / "text.txt").read_text()
    assert len(text) == demo.JUDGED_CHARACTERS
    assert "assignment" in text


def test_the_text_that_chooses_comes_with_python_too_and_is_another(tmp_path: Path) -> None:
    text = library_docstrings(tmp_path / "text.txt").read_text()
    assert len(text) > 300_000
    judging = python_reference(tmp_path / "other.txt").read_text()
    assert sum(paragraph in judging for paragraph in text.split("\n\n")) < 0.01 * text.count("\n\n")


def test_steps_say_what_is_done_and_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for name in demo.STEPS:
        with progress.step(name):
            pass
    said = capsys.readouterr().out.splitlines()
    assert f"=== 1 of {len(demo.STEPS)}: a model folder; 0 s so far, about {sum(demo.STEPS.values())} s left" in said[1]
    assert list(progress.taken) == list(demo.STEPS)


def test_what_is_left_is_told_by_how_fast_it_went_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    (first, seconds), *others = demo.STEPS.items()
    with Progress(taken={first: 2.5 * seconds}).step(others[0][0]):
        pass
    left = 2.5 * sum(seconds for _, seconds in others)
    assert f"about {left:.0f} s left at this pace" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_model() -> None:
    points = read_lines(PUBLISHED, "points.jsonl", PointRecord)
    labels = list(dict.fromkeys(point.arm.label for point in points))
    points = [next(point for point in points if point.arm.label == label) for label in labels]
    tasks = [SimpleNamespace(score=SimpleNamespace(task=name, score=0.5)) for name in ("capitals", "agreement")]
    answers = Answers(dict.fromkeys(labels, "Paris."), dict.fromkeys(labels, tasks))  # type: ignore[arg-type]
    lines = summary(points, answers).splitlines()
    assert lines[0].endswith("| perplexity | KL, nats | capitals | agreement |")
    assert len([line for line in lines if line.endswith("| 50.0% | 50.0% |")]) == len(labels) > 2
    assert lines[2].startswith("| dense | ")
    assert lines[-1] == f"- {labels[-1]}: Paris."
