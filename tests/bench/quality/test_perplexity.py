"""Perplexity by the protocol: against the plain model's own loss."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench.cli import app
from bench.quality.perplexity import measure_perplexity
from mi_prun.console import run_app
from mi_prun.errors import UserError

REFERENCE = Path(__file__).parents[3] / "bench" / "reference"


@torch.inference_mode()
def test_it_is_the_models_own_loss_on_the_last_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = " ".join(f"On day {day} the old man walked {day * 7 % 13} miles along the river." for day in range(200))
    (tmp_path / "days.txt").write_text(text)
    words = ["perplexity", str(REFERENCE), "--text", str(tmp_path / "days.txt"), "--tokens", "192", "--window", "64"]
    monkeypatch.setattr("sys.argv", ["mi-prun-bench", *words])
    assert run_app(app) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["predicted_tokens"] == 3 * 63
    assert "no BOS" in said["protocol"]  # as this tokenizer begins a text

    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    ids = tokenizer(text + "\n", add_special_tokens=False)["input_ids"][2 * 64 : 5 * 64]  # two windows are set aside
    windows = torch.tensor(ids).view(3, 64)
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32).eval()
    loss = model(input_ids=windows, labels=windows).loss
    assert said["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-4)


def test_a_window_that_predicts_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--window must be at least 2 .*, got 1"):
        measure_perplexity(str(REFERENCE), str(tmp_path / "none.txt"), tokens=64, window_tokens=1)
