"""The commands that read results: what they print, what they write, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import bench.reports.mlflow_log
import bench.tasks.tasks
from bench.cli import app
from bench.records.schema import PointRecord, Speed, append_record
from bench.records.task_schema import TaskRecord
from bench.tasks.task_settings import PROMPTS, Sampling, TaskSettings
from mi_prun.console import run_app

Point = Callable[..., PointRecord]
Save = Callable[..., str]
Run = Callable[..., int]


def as_run(points: Sequence[PointRecord], name: str) -> list[PointRecord]:
    return [point.model_copy(update={"run": name}) for point in points]


def faster(point: PointRecord, times: float) -> PointRecord:
    rounds = tuple(
        each.model_copy(update={"output_tokens_per_s": times * each.output_tokens_per_s}) for each in point.speed.rounds
    )
    return point.model_copy(update={"speed": Speed(rounds=rounds)})


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`command(*words)`: the exit status of `mi-prun-bench` with these words."""

    def call(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["mi-prun-bench", *map(str, words)])
        try:
            return run_app(app)
        except SystemExit as stopped:
            return int(stopped.code or 0)

    return call


def test_the_command_prints_changes_then_json(
    tmp_path: Path,
    one_sweep: list[PointRecord],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    save: Save,
) -> None:
    a = save(tmp_path / "a", one_sweep)
    b = save(tmp_path / "b", as_run([faster(point, 2) for point in one_sweep], "run-2"))
    monkeypatch.setattr("sys.argv", ["mi-prun-bench", "diff", a, b])
    assert run_app(app) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("dense, chat, 4 in flight: tokens/s 101.")
    assert out[0].endswith("better")
    assert len(json.loads(out[-1])["changes"]) == 4


def test_exit_status(
    tmp_path: Path,
    one_sweep: list[PointRecord],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for point in one_sweep:
        append_record(tmp_path, point)

    def status(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["mi-prun-bench", "recommend", str(tmp_path), *words])
        try:
            return run_app(app)
        except SystemExit as stopped:
            return int(stopped.code or 0)

    assert status("--min-speedup", "1.2") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["dropped"] == [2, 3]
    assert status("--min-speedup", "3") == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fits"] is False
    assert status() == 2


def test_the_command_on_a_folder_of_several_runs(
    tmp_path: Path,
    one_sweep: list[PointRecord],
    point: Point,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unjudged = {"run": "run-2", "quality": None, "quality_measured_on": None}
    for taken_model in (*one_sweep, *(point(dropped, **unjudged) for dropped in ((), (3,)))):
        append_record(tmp_path, taken_model)
    monkeypatch.setattr("sys.argv", ["mi-prun-bench", "recommend", str(tmp_path), "--max-ppl-increase", "45%"])
    assert run_app(app) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"note: of run run-1, owner/dense; beside it: {tmp_path}@run-2"
    assert json.loads(last)["arm"] == "hybrid 25.0%"
    monkeypatch.setattr("sys.argv", ["mi-prun-bench", "recommend", f"{tmp_path}@run-2", "--max-ppl-increase", "45%"])
    assert run_app(app) == 2
    assert "run run-2 did not measure quality" in capsys.readouterr().err


def test_diff_shows_what_is_within_noise_only_where_it_is_asked_for(
    tmp_path: Path, one_sweep: list[PointRecord], command: Run, capsys: pytest.CaptureFixture[str], save: Save
) -> None:
    a, b = save(tmp_path / "a", one_sweep), save(tmp_path / "b", as_run(one_sweep, "run-2"))
    assert command("diff", a, b) == 0
    summary, last = capsys.readouterr().out.splitlines()
    assert summary.startswith("66 figures compared, 0 beyond noise")
    assert json.loads(last) == {"compared": 66, "changes": []}
    assert command("diff", a, b, "--all") == 0
    assert len(capsys.readouterr().out.splitlines()) == 66 + 2
    assert command("diff", a, a) == 2
    assert "are the same run run-1" in capsys.readouterr().err


def test_diff_compares_other_engines_only_where_it_is_asked_to(
    tmp_path: Path, one_sweep: list[PointRecord], command: Run, capsys: pytest.CaptureFixture[str], save: Save
) -> None:
    after = [
        point.model_copy(update={"provenance": point.provenance.model_copy(update={"serve_flags": ()})})
        for point in as_run(one_sweep, "run-2")
    ]
    a, b = save(tmp_path / "a", one_sweep), save(tmp_path / "b", after)
    for words, told in (((), "not compared"), (("--anyway",), "compared anyway")):
        assert command("diff", a, b, *words) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert first == f"note: other flags of the server (--enforce-eager -> none): speed and memory are {told}"


def test_a_recommendation_needs_a_run(
    tmp_path: Path, task: Callable[..., TaskRecord], command: Run, capsys: pytest.CaptureFixture[str], save: Save
) -> None:
    place = save(tmp_path / "asked", (), [task()])
    assert command("recommend", place, "--min-speedup", "1.1") == 2
    assert f"error: {place} has tasks only; nothing was measured under load" in capsys.readouterr().err


def test_limits_are_read_before_the_folder_is(tmp_path: Path, command: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("recommend", tmp_path / "absent", "--memory", "24") == 2
    assert "--memory must be like 24GiB" in capsys.readouterr().err


def test_a_report_says_where_it_is(
    tmp_path: Path, task: Callable[..., TaskRecord], command: Run, capsys: pytest.CaptureFixture[str], save: Save
) -> None:
    place, out = save(tmp_path / "asked", (), [task()]), tmp_path / "made" / "here"
    names = ["report.html", "report.md", "report.csv"]
    for words, folder in (((), Path(place)), (("-o", out), out)):
        assert command("report", place, *words) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        assert lines == [str(folder / name) for name in names]
        assert json.loads(last) == {"report": lines}
        assert all((folder / name).is_file() for name in names)


def test_a_report_is_logged_where_a_server_is_named(
    tmp_path: Path,
    task: Callable[..., TaskRecord],
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    save: Save,
) -> None:
    logged: list[Any] = []

    def log(results: Any, uri: str) -> int:
        logged.append((len(results.tasks), uri))
        return 7

    monkeypatch.setattr(bench.reports.mlflow_log, "log_results", log)
    assert command("report", save(tmp_path / "asked", (), [task()]), "--mlflow", "http://store") == 0
    assert logged == [(1, "http://store")]
    assert capsys.readouterr().out.splitlines()[3] == "7 runs logged to http://store"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, task: Callable[..., TaskRecord]) -> list[Any]:
    """What the models are asked, with no engine; the dense one and one of a pruned one are answered."""
    given: list[Any] = []

    def run_tasks(models: list[str], urls: list[str], output: Path, settings: TaskSettings) -> list[TaskRecord]:
        given.append((models, urls, output, settings))
        return [task(), task((3,), [True, False, False, True])]

    monkeypatch.setattr(bench.tasks.tasks, "run_tasks", run_tasks)
    return given


def test_tasks_are_asked_as_the_options_say_and_shown(
    tmp_path: Path, asked: list[Any], command: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once\nTwice\n")
    words = ["--tasks", "boolq,piqa", "--task-limit", "5", "--concurrency", "2", "--logprob-tolerance", "0.1"]
    words += ["--prompts", str(prompts), "--generate", "9", "--temperature", "0", "--seed", "3"]
    assert command("tasks", "dense", "p12", "-o", "out", *words, "--serve-flags", "--seed 1") == 0
    ((models, urls, output, settings),) = asked
    assert (models, urls, output) == (["dense", "p12"], [], Path("out"))
    assert [task.name for task in settings.tasks] == ["boolq", "piqa"]
    assert (settings.limit, settings.concurrency, settings.logprob_tolerance_nats) == (5, 2, 0.1)
    assert settings.sampling == Sampling(("Once", "Twice"), 9, 0.0, 3)
    assert settings.serve_flags == ("--seed", "1")
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.strip().startswith("dense: boolq")
    assert ", to dense -25.0 [" in second
    assert json.loads(last) == {"run": "asked-1", "records": 2}


def test_what_is_left_out_of_tasks(asked: list[Any], command: Run) -> None:
    assert command("tasks", "-o", "out", "--url", "http://a", "--url", "http://b") == 0
    words = ["--no-logprob-check", "--logprob-tolerance", "9", "--generate", "0"]
    assert command("tasks", "-o", "out", "--url", "http://a", *words) == 0
    (models, urls, _, plain), (_, _, _, less) = asked
    assert (models, urls) == ([], ["http://a", "http://b"])
    assert (plain.logprob_tolerance_nats, plain.sampling) == (0.05, Sampling(PROMPTS))
    assert (less.logprob_tolerance_nats, less.sampling) == (None, None)
    assert len(plain.tasks) == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "nope"], "--tasks 'nope': there is no task 'nope'"),
        (["--temperature", "3"], "--temperature must be in [0, 2], got 3"),
        (["--generate", "-1"], "--generate must be at least 0 tokens, got -1"),
        (["--prompts", "absent"], "--prompts absent cannot be read"),
        (["--serve-flags", "'"], '--serve-flags "\'": No closing quotation'),
    ],
)
def test_options_of_tasks_that_will_not_do(
    asked: list[Any], command: Run, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert command("tasks", "dense", "-o", "out", *words) == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert asked == []
