"""Quality on a text of the user's: which model is measured by what, with the process and the models stood in for."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mi_prun.model.model_folder
import mi_prun.quality.evaluator
import mi_prun.quality.quality
from bench.models.measured_model import MeasuredModel, MeasuredModels, open_measured_models
from bench.quality import quality
from bench.quality.quality import measured, quality_on_text, with_quality_on
from bench.records.schema import PointRecord
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.plan.plan import Quality

Point = Callable[..., PointRecord]
NAME = "model.layers.0.mlp.down_proj.weight"


def judged(point: Point, perplexity: float) -> Quality:
    made = point().quality
    assert made is not None
    return made.model_copy(update={"pruned_perplexity": perplexity})


def a_model(point: Point, dropped: tuple[int, ...] = (), kind: str | None = None, **fields: Any) -> MeasuredModel:
    record = point(dropped, kind=kind)
    return MeasuredModel(record.arm.model_copy(update=fields), 100, None)


class Process:
    """Stands for the other process: what it is asked, and what it answers."""

    def __init__(self, stdout: str = "", stderr: str = "", returncode: int = 0) -> None:
        self.answer = SimpleNamespace(stdout=stdout, stderr=stderr, returncode=returncode)
        self.words: list[str] = []

    def __call__(self, command: list[str], **options: Any) -> Any:
        self.words = command[command.index("bench.quality.quality") + 1 :]
        return self.answer


def test_a_checkpoint_goes_by_its_folder_and_a_virtual_one_by_its_blocks(
    point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose name is a number is no block."""
    monkeypatch.chdir(tmp_path)
    lines = [judged(point, perplexity).model_dump_json() for perplexity in (60.0, 70.0)]
    process = Process("a warning of a library\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(subprocess, "run", process)
    pruned = [a_model(point, (3,), model="25", weights="materialized"), a_model(point, (2, 3))]
    found = quality_on_text("owner/dense", pruned, "book.txt", 7)
    assert [each.pruned_perplexity for each in found] == [60, 70]
    assert process.words == ["owner/dense", "book.txt", "--seed", "7", str(tmp_path / "25"), "2,3"]


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("loading\nerror: book.txt: no such file\n", "quality on book.txt: book.txt: no such file"),
        ("", "quality on book.txt: status 3"),
    ],
)
def test_a_process_that_fails_is_said_in_one_line(
    point: Point, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str
) -> None:
    monkeypatch.setattr(subprocess, "run", Process(stderr=stderr, returncode=3))
    with pytest.raises(UserError) as raised:
        quality_on_text("owner/dense", [a_model(point, (3,))], "book.txt", 0)
    assert str(raised.value) == said


def test_only_pruned_models_get_a_quality_and_it_is_said_of_what(
    point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "book.txt"
    text.write_text("one")
    written = a_model(point, (3,), model="p12", weights="materialized")
    models = MeasuredModels(
        dense=point().dense,
        all=(a_model(point), written, a_model(point, (2, 3)), a_model(point, (2, 3), "draft", label="draft")),
        config={},
    )
    asked: list[Any] = []

    def on_text(dense: str, pruned: list[MeasuredModel], text: str, seed: int) -> list[Quality]:
        asked.append((dense, [model.arm.label for model in pruned], text, seed))
        return [judged(point, perplexity) for perplexity in (60.0, 70.0)]

    monkeypatch.setattr(quality, "quality_on_text", on_text)
    changed = with_quality_on(models, str(text), 5)
    assert asked == [("owner/dense", ["hybrid 12.5%", "hybrid 25.0%"], str(text), 5)]
    assert [model.arm for model in changed.all] == [model.arm for model in models.all]
    perplexities = [model.quality.pruned_perplexity if model.quality else None for model in changed.all]
    assert perplexities == [None, 60, 70, None]
    assert [model.quality_measured_on for model in changed.all] == [None, "checkpoint", "plan", None]
    text.write_text("two")
    other = with_quality_on(models, str(text), 5)
    assert models.quality_text is None
    assert None not in (changed.quality_text, other.quality_text)
    assert changed.quality_text != other.quality_text  # a text is what it holds


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What of `mi_prun.quality` is called, with no model: a quality is the words it was measured by."""
    calls: list[Any] = []

    def checkpoint(dense: str, pruned: str, text: str, *, seed: int) -> str:
        calls.append(("checkpoint", pruned, seed))
        return f"of {pruned}"

    def held_out(*given: Any, **settings: Any) -> Any:
        calls.append(("load", settings["tokens"], settings["seed"]))
        windows = SimpleNamespace(tokens=None, text="held-out")
        return None, SimpleNamespace(held_out=windows, description=SimpleNamespace(bos=True))

    def bypassed(evaluator: Any, dropped: tuple[int, ...], *, text: str, bos: bool) -> str:
        return f"without {dropped} on {text}, bos {bos}"

    monkeypatch.setattr(quality, "whole_folder", contextlib.nullcontext)
    monkeypatch.setattr(mi_prun.model.model_folder, "open_model", lambda dense: None)
    monkeypatch.setattr(mi_prun.quality.evaluator, "Evaluator", lambda model, tokens: None)
    monkeypatch.setattr(mi_prun.quality.quality, "measure_quality", checkpoint)
    monkeypatch.setattr(mi_prun.quality.quality, "load_with_held_out", held_out)
    monkeypatch.setattr(mi_prun.quality.quality, "quality_of", bypassed)
    return calls


def test_blocks_are_bypassed_in_one_dense_model_and_the_order_is_kept(asked: list[Any]) -> None:
    assert measured("dense", "text", ["2,5", "p25/", "11"], 3) == [
        "without (2, 5) on held-out, bos True",
        "of p25/",
        "without (11,) on held-out, bos True",
    ]
    assert asked == [("checkpoint", "p25/", 3), ("load", 8192, 3)]


def test_without_blocks_to_bypass_the_dense_model_is_not_loaded_for_them(asked: list[Any]) -> None:
    assert measured("dense", "text", ["/models/25"], 0) == ["of /models/25"]
    assert asked == [("checkpoint", "/models/25", 0)]


def test_the_process_prints_a_line_for_each(
    point: Point, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "measured", lambda *given: [judged(point, 60.0), judged(point, 70.0)])
    monkeypatch.setattr("sys.argv", ["quality", "dense", "text", "2,3", "p25"])
    with pytest.raises(SystemExit) as ended:
        quality.main()
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Quality.model_validate_json(line).pruned_perplexity for line in lines] == [60, 70]


def test_a_virtual_healed_folder_is_measured_with_what_it_learned(
    tmp_path: Path, dense: Path, prune: Callable[..., Path], heal_virtual: Callable[..., Path], monkeypatch
) -> None:
    plain = prune(dense, tmp_path / "plain", [1])
    own = load_file(dense / "model.safetensors")[NAME] + 1
    healed = heal_virtual(dense, read_manifest(plain).plan, tmp_path / "healed", NAME, own)
    with quality.whole_folder(str(healed)) as folder:
        tensors = load_file(Path(folder) / "model.safetensors")
    before = load_file(plain / "model.safetensors")
    assert torch.equal(tensors.pop(NAME), own)
    before.pop(NAME)
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    with quality.whole_folder(str(plain)) as folder:
        assert folder == str(plain)

    virtual = prune(dense, tmp_path / "virtual", [2], virtual=True)
    asked: list[str] = []

    def measured(command, **_):
        asked.extend(command[8:])
        line = Quality(
            text="t", protocol="p", window_tokens=8, windows=1, predicted_tokens=7, dense_perplexity=2.0,
            pruned_perplexity=3.0, kl_nats_per_token=0.1,
        ).model_dump_json()  # fmt: skip
        return type("Done", (), {"returncode": 0, "stdout": "\n".join([line] * 3)})

    monkeypatch.setattr(quality.subprocess, "run", measured)
    monkeypatch.setattr(quality, "text_digest", lambda text: text)
    models = open_measured_models(str(dense), [str(plain), str(healed), str(virtual)])
    judged = with_quality_on(models, "text", 0).all
    assert asked == [str(plain), str(healed), "2"]
    assert [model.quality_measured_on for model in judged] == [None, "checkpoint", "checkpoint", "plan"]
