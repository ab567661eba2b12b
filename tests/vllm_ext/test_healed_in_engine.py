"""A healed model in real engines: out of the dense model's files it says, bit for bit, what the written folder says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.healing import Healing
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.adapter import Adapter, healed_by, merged_by, read_adapter, write_adapter
from serve.served_model import planned_model

DROPPED = (1, 2, 4)
PROMPTS = [[(7 * place + 13 * row) % 97 for place in range(24)] for row in range(3)]
HEALING = Healing(method="fit + lora", text="self", tokens=8, fit_tokens=8, seconds=1.0, seed=0)
RANK = 4


@pytest.mark.engine
@pytest.mark.long
def test_a_merged_adapter_says_what_the_written_folder_says(
    in_engine: Callable[..., Any], tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path
) -> None:
    dense = tiny("llama", hidden_size=128, head_dim=32)
    tensors = load_file(dense / "model.safetensors")
    unhealed = prune(dense, tmp_path / "unhealed", DROPPED)
    plan = read_manifest(unhealed).plan
    plan_file, adapter_file = tmp_path / "plan.json", tmp_path / "adapter.safetensors"
    plan.write(plan_file)
    write_adapter(adapter_file, learned(tensors), plan, HEALING)
    written, virtual = tmp_path / "written", tmp_path / "virtual"
    folder = open_model(dense)
    adapter = read_adapter(adapter_file, plan)
    with merged_by(adapter_file, adapter, plan, folder, written) as healed:
        write_checkpoint(folder, plan, written, healed=healed)
    write_checkpoint(folder, plan, virtual, virtual=True, healed=healed_by(adapter_file, adapter, folder))
    (tmp_path / "scratch").mkdir()
    planned = Path(planned_model(str(dense), plan_file, tmp_path / "scratch", adapter=adapter_file).folder)
    jobs = [(unhealed, "auto"), (written, "auto"), (written, "mi_prun"), (virtual, "mi_prun"), (planned, "mi_prun")]
    found = in_engine(
        [
            {
                "model": str(path), "prompts": PROMPTS, "sampling": {"prompt_logprobs": 0},
                "engine": {"load_format": load_format},
            }
            for path, load_format in jobs
        ]
    )  # fmt: skip
    before, stock, ours, merged, by_plan = (result["log_probs"] for result in found["results"])
    assert stock == ours == merged == by_plan
    assert before != stock
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)
        logits = model(input_ids=torch.tensor(PROMPTS)).logits.log_softmax(-1)
    wanted = [[float(logits[i, at - 1, row[at]]) for at in range(1, len(row))] for i, row in enumerate(PROMPTS)]
    assert torch.allclose(torch.tensor(stock), torch.tensor(wanted), atol=1e-4)


def learned(tensors: dict[str, torch.Tensor]) -> Adapter:
    """A tensor of its own with LoRA on it, LoRA alone in a fused and in another matrix, and a norm."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    down, query, gate = (
        f"model.layers.{name}.weight" for name in ("0.mlp.down_proj", "3.self_attn.q_proj", "5.mlp.gate_proj")
    )
    norm = "model.layers.5.input_layernorm.weight"
    own = {name: tensors[name] + drawn(*tensors[name].shape) for name in (down, norm)}
    lora_a = {name: drawn(RANK, tensors[name].shape[1]) for name in (down, query, gate)}
    lora_b = {name: drawn(tensors[name].shape[0], RANK) for name in (down, query, gate)}
    return Adapter(own, lora_a, lora_b, scaling=2.0)
