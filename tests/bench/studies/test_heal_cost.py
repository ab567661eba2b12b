"""Both loops train the same adapters on the same tokens; what they cost is measured by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.studies.heal_cost import PlainLoop, growth_bytes, main, student_of
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.settings import HealSettings


def test_the_plain_student_is_the_model_without_the_blocks(tiny: Callable[..., Path]) -> None:
    folder = open_model(tiny("llama"))
    weights = SharedWeights(load_on(folder, "cpu"), (2, 3), folder.family.block_prefix)
    weights.adapt(2, 4.0, 0)
    tokens = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    plain = PlainLoop(weights.model.model, student_of(weights), HealSettings())
    assert sum(p.numel() for p in plain.trained) == sum(p.numel() for p in weights.trained.values())
    with torch.no_grad(), weights.model.without((2, 3)) as pruned:
        wanted = pruned(input_ids=tokens, use_cache=False).logits
    assert torch.allclose(plain.student(input_ids=tokens, use_cache=False).logits, wanted, atol=1e-5)
    first = plain.step(tokens)
    assert plain.step(tokens) < first


def test_the_most_memory_of_a_step_is_seen_though_it_is_given_back() -> None:
    def step() -> None:
        torch.ones(2**26)

    for _ in range(2):
        assert growth_bytes(torch.device("cpu"), step) == pytest.approx(2**28, rel=0.1)


def test_a_line_is_measured(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cost.jsonl"
    model = tiny("llama")
    words = [
        str(model),
        "--drop",
        "2-3",
        "--steps",
        "2",
        "--batch-tokens",
        "32",
        "--window",
        "16",
        "--rank",
        "2",
    ]
    monkeypatch.setattr("sys.argv", ["heal_cost", *words, "--train-dtype", "float32", "-o", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0, capsys.readouterr().err
    line = json.loads(out.read_text())
    assert (line["dropped"], line["step_tokens"], line["train_dtype"]) == ([2, 3], 32, "float32")
    assert line["growth_bytes"].keys() == {"healing", "plain"}
    assert line["dense_bytes"] == sum(tensor.nbytes for tensor in load_file(model / "model.safetensors").values())
    assert len(line["healing_s"]) == len(line["plain_s"]) == 2
    assert {"prefix", "teacher forward", "student forward", "backward of the blocks", "optimizer", "step"} <= set(
        line["parts_s"]
    )
