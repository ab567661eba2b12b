"""Losses of sets are those that the evaluator measures, and are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.studies import set_losses
from bench.studies.set_losses import losses, read_losses
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model
from mi_prun.quality.evaluator import Evaluator

REFERENCE = Path(__file__).parents[3] / "bench" / "reference"


def test_they_are_those_of_the_evaluator() -> None:
    model = load_block_model(open_model(REFERENCE), device=torch.device("cpu"), dtype=torch.float32)
    windows = torch.randint(5, 4_000, (3, 20), generator=torch.Generator().manual_seed(0))
    sets = [(), (3,), (0, 7, 8)]
    found = dict(losses(model, windows, sets))
    wanted = [loss.ce_nats for loss in Evaluator(model, windows).measure(sets)]
    assert [found[dropped] for dropped in sets] == pytest.approx(wanted, rel=1e-5)


def test_a_set_that_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "ships.txt"
    text.write_text(" ".join(f"In {n} there were {n * n % 97} ships." for n in range(3_000)))
    out = tmp_path / "out.jsonl"

    def run(*drop: str) -> int:
        words = ["--text", str(text), "--tokens", "64", "--window", "32", "--dtype", "float32", "-o", str(out)]
        monkeypatch.setattr("sys.argv", ["set_losses", str(REFERENCE), *words, *(f"--drop={one}" for one in drop)])
        with pytest.raises(SystemExit) as ended:
            set_losses.main()
        return int(ended.value.code or 0)

    assert run("3", "2-3") == 0
    first = out.read_text()
    assert [row.dropped for row in read_losses(out)] == [(3,), (2, 3)]
    assert run("2,3", "4") == 0
    assert out.read_text().startswith(first)
    assert [row.dropped for row in read_losses(out)] == [(3,), (2, 3), (4,)]
    text.write_text("Something else. " * 3_000)
    assert run("3") != 0
