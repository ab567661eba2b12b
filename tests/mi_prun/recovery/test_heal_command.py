"""`mi-prun heal` and `prune --heal` as a user meets them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mi_prun import pipeline
from mi_prun.checkpoint.healing import ADAPTER_NAME
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.recovery import heal as recovery
from mi_prun.recovery.judge import NoBetterError
from mi_prun.settings import HealSettings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A healing takes a fraction of the tokens that it takes by default."""
    whole = recovery.heal

    def heal(dense: Any, plan: Any, out: Path, settings: HealSettings, **more: Any) -> Any:
        return whole(dense, plan, out, replace(settings, fit_tokens=8_192, gate_tokens=512), **more)

    monkeypatch.setattr(recovery, "heal", heal)
    monkeypatch.setattr(pipeline, "heal_model", heal)


@pytest.mark.usefixtures("briefly")
def test_the_closed_form_of_a_pruned_folder(
    run: Run, pruned_reference: Path, manual: Path, harbour: Path, tmp_path: Path
) -> None:
    text = ["--calibration", f"{manual}=3", "--calibration", harbour, "--window", 64, "--device", "cpu"]
    out, adapter = tmp_path / "healed", tmp_path / "adapter"
    status, said, err = run("heal", pruned_reference, "-o", out, "--fit", *text, "--adapter", adapter)
    assert (status, adapter.is_file()) == (0, True), err
    assert "healed       fit" in said
    assert "of the gap in log-perplexity; manual.txt, held-out part" in said
    assert run("inspect", out, "--verify")[0] == 0
    plan = tmp_path / "plan.json"
    read_manifest(out).plan.write(plan)
    dense = read_manifest(out).plan.dense.name
    assert run("apply", dense, plan, "-o", tmp_path / "virtual", "--virtual", "--adapter", adapter)[0] == 0
    assert read_manifest(tmp_path / "virtual").healing == read_manifest(out).healing
    assert run("inspect", tmp_path / "virtual", "--verify")[0] == 0
    whole = tmp_path / "whole"
    assert run("apply", dense, plan, "-o", whole, "--adapter", adapter)[0] == 0
    assert (whole / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert run("inspect", whole, "--verify")[0] == 0
    assert sorted(tmp_path.iterdir()) == sorted([out, adapter, plan, tmp_path / "virtual", whole])
    status, _, err = run("heal", out, "-o", tmp_path / "again", "--fit", *text)
    assert (status, err.count("\n")) == (2, 1)
    assert "is healed already" in err


@pytest.mark.usefixtures("briefly")
def test_pruned_and_healed_in_one_step(run: Run, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "healed"
    status, said, err = run(
        "prune", reference, "--drop", "4-5", "-o", out, "--heal", "fit", "--tokens", 256, "--window", 64,
        "--no-quality", "--device", "cpu", "--virtual",
    )  # fmt: skip
    assert status == 0, err
    assert not (out / "model.safetensors").exists()
    assert (out / ADAPTER_NAME).is_file()
    assert run("inspect", out, "--verify")[0] == 0
    assert "dropped blocks (0-based): 4, 5" in said
    assert "healed       fit" in said
    manifest = read_manifest(out)
    assert manifest.healing is not None
    assert [kind.text for kind in manifest.healing.quality] == ["self, held-out part", "Python's manual"]
    assert manifest.plan.dropped == (4, 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fit", "--minutes", "3"), "--fit is the closed form alone"),
        (("--fit", "--no-fit"), "--fit is the closed form alone"),
        (("--tokens", "1k", "--minutes", "3"), "--tokens or --minutes, not both"),
        (("--tokens", "many"), "--tokens must be a number"),
        (("--train", "none"), "--train must be lora or all"),
        (("--fit", "--rank", "8", "--ce-share", "1"), "--fit trains nothing: leave out --rank, --ce-share"),
        (("--train", "all", "--rank", "8"), "--train all has no rank"),
    ],
)
def test_options_that_do_not_go_together(run: Run, pruned_reference: Path, tmp_path: Path, words, message) -> None:
    status, _, err = run("heal", pruned_reference, "-o", tmp_path / "healed", *words)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--heal", "soon"), "--heal must be"),
        (("--heal", "-1min"), "--heal must be"),
        (("--heal", "10m"), "like 10min"),
    ],
)
def test_prune_refuses_before_it_looks_at_a_model(run: Run, tmp_path: Path, words, message) -> None:
    status, _, err = run("prune", "no/such-model", "--ratio", 0.25, "-o", tmp_path / "healed", *words)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_no_better_is_another_status_than_wrong_input(
    run: Run, pruned_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a script may go on with the pruned model."""

    def no_better(*args: object, **options: object) -> None:
        raise NoBetterError("healing (fit) does not help")

    monkeypatch.setattr("mi_prun.recovery.heal.heal_folder", no_better)
    status, _, err = run("heal", pruned_reference, "-o", tmp_path / "healed", "--fit")
    assert (status, err) == (3, "error: healing (fit) does not help\n")


@pytest.mark.parametrize("place", ["healed/model.safetensors", "healed", "pruned/learned.safetensors", "pruned"])
def test_an_adapter_never_lies_among_weights(run: Run, pruned_reference: Path, tmp_path: Path, place: str) -> None:
    pruned = tmp_path / "pruned"
    shutil.copytree(pruned_reference, pruned)
    before = {path.name: path.stat().st_mtime_ns for path in pruned.iterdir()}
    words = ("-o", tmp_path / "healed", "--fit", "--adapter", tmp_path / place, "--force")
    status, _, err = run("heal", pruned, *words)
    assert (status, err.count("\n")) == (2, 1)
    assert "choose another place" in err
    assert {path.name: path.stat().st_mtime_ns for path in pruned.iterdir()} == before
    assert not (tmp_path / "healed").exists()


def test_an_adapter_never_takes_the_place_of_the_text(run: Run, pruned_reference: Path, tmp_path: Path) -> None:
    text = tmp_path / "wiki.txt"
    text.write_text("mine")
    words = ("-o", tmp_path / "healed", "--fit", "--calibration", text, "--adapter", text, "--force")
    status, _, err = run("heal", pruned_reference, *words)
    assert (status, err.count("\n")) == (2, 1)
    assert f"output {text} is or holds {text}, which is read; choose another place" in err
    assert text.read_text() == "mine"
