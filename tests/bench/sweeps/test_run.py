"""The order in which `run` and `draft` do things, with models, engines and quality stood in for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.models.measured_model import MeasuredModel, MeasuredModels
from bench.records.schema import PointRecord
from bench.settings import MeasureSettings, WorkloadSettings
from bench.sweeps import run as running
from bench.sweeps.measure import Prepared
from bench.sweeps.run import run, run_drafts
from mi_prun.checkpoint.healing import Healing
from mi_prun.errors import UserError
from mi_prun.text.text_source import text_digest

SETTINGS = MeasureSettings(WorkloadSettings(seed=7))


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, point: Callable[..., PointRecord]) -> list[Any]:
    """What was done, in order; the models that were prepared and measured stand behind it."""
    calls: list[Any] = []

    def opened(dense: str, pruned: Sequence[str], drafts: Sequence[Path] = ()) -> MeasuredModels:
        calls.append(("open", dense, list(pruned), list(drafts)))
        made = [point(), *(point((3,)) for _ in pruned), *(point((3,), kind="draft") for _ in drafts)]
        flags = [("--draft", str(path)) for path in drafts]
        behind: list[tuple[str, ...]] = [()] * (len(made) - len(flags)) + flags
        models = [MeasuredModel(each.arm, 1, None, flags=own) for each, own in zip(made, behind, strict=True)]
        return MeasuredModels(point().dense, tuple(models), {})

    def prepared(models: MeasuredModels, settings: MeasureSettings) -> Prepared:
        calls.append(("prepare", models))
        if settings.loads.rounds < 1:
            raise UserError("--rounds must be at least 1")
        return Prepared(models, settings, [], [], {}, [], "together", None)  # type: ignore[arg-type]

    def judged(models: MeasuredModels, text: str, seed: int) -> MeasuredModels:
        calls.append(("quality", text, seed))
        return replace(models, quality_text="sha")

    def measured(given: Prepared, folder: Any, while_served: Any = None) -> list[PointRecord]:
        assert folder.path.is_dir()
        calls.append(("measure", given.models, while_served))
        return [point()]

    for name, function in (
        ("open_measured_models", opened),
        ("prepare", prepared),
        ("with_quality_on", judged),
        ("measure", measured),
    ):
        monkeypatch.setattr(running, name, function)
    return calls


def names(done: list[Any]) -> list[str]:
    return [call[0] for call in done]


def test_without_a_text_the_plans_own_quality_is_kept(
    done: list[Any], tmp_path: Path, point: Callable[..., PointRecord]
) -> None:
    use = object()
    assert run("dense", ["p25"], tmp_path / "out", SETTINGS, while_served=use) == [point()]  # type: ignore[arg-type]
    assert names(done) == ["open", "prepare", "measure"]
    assert done[0] == ("open", "dense", ["p25"], [])
    assert done[-1] == ("measure", done[1][1], use)
    assert done[-1][1].quality_text is None


def test_quality_on_a_text_is_measured_when_all_is_checked_and_before_an_engine(
    done: list[Any], tmp_path: Path
) -> None:
    run("dense", ["p25"], tmp_path / "out", SETTINGS, quality_text="book.txt")
    assert names(done) == ["open", "prepare", "quality", "measure"]
    assert done[2] == ("quality", "book.txt", 7)
    assert done[3][1].quality_text == "sha"


def test_a_text_that_a_model_was_healed_on_does_not_judge_it(
    done: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: Callable[..., PointRecord]
) -> None:
    book, other = tmp_path / "book.txt", tmp_path / "other.txt"
    book.write_text("one")
    other.write_text("two")
    healing = Healing(
        method="fit",
        text="book.txt",
        tokens=0,
        fit_tokens=8,
        seconds=1.0,
        seed=0,
        text_digests=(text_digest(str(book)),),
    )
    healed = MeasuredModel(point((3,)).arm, 1, None, healing=healing)
    models = MeasuredModels(point().dense, (MeasuredModel(point().arm, 1, None), healed), {})
    monkeypatch.setattr(running, "open_measured_models", lambda *_: models)
    with pytest.raises(UserError, match=r"--quality-text .*book.txt: .* was healed on it; name another text"):
        run("dense", ["p25"], tmp_path / "out", SETTINGS, quality_text=str(book))
    assert done == []
    run("dense", ["p25"], tmp_path / "out", SETTINGS, quality_text=str(other))
    assert names(done) == ["prepare", "quality", "measure"]


def test_what_will_not_do_is_said_before_anything_is_written(done: list[Any], tmp_path: Path) -> None:
    wrong = MeasureSettings(WorkloadSettings(rounds=0))
    for start in (
        lambda: run("dense", ["p25"], tmp_path / "out", wrong, quality_text="book.txt"),
        lambda: run_drafts("dense", [Path("plan.json")], tmp_path / "out", wrong, 3),
    ):
        with pytest.raises(UserError, match="--rounds"):
            start()
    assert names(done) == ["open", "prepare"] * 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_drafted_with_no_tokens(done: list[Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--draft-tokens must be at least 1, got 0"):
        run_drafts("dense", [Path("plan.json")], tmp_path / "out", SETTINGS, 0)
    assert done == []


@pytest.mark.parametrize(
    ("tokens", "flags"),
    [(None, ("--draft", "plan.json")), (3, ("--draft", "plan.json", "--draft-tokens", "3"))],
)
def test_drafted_tokens_are_the_plans_unless_they_are_given(
    done: list[Any], tmp_path: Path, tokens: int | None, flags: tuple[str, ...]
) -> None:
    run_drafts("dense", [Path("plan.json")], tmp_path / "out", SETTINGS, tokens)
    assert names(done) == ["open", "prepare", "measure"]
    assert done[0] == ("open", "dense", [], [Path("plan.json")])
    dense, draft = done[-1][1].all
    assert (dense.flags, dense.arm.draft_tokens) == ((), None)  # the dense model drafts nothing
    assert (draft.flags, draft.arm.draft_tokens) == (flags, tokens)
    assert done[1][1] == done[2][1]  # what was checked is what is measured
