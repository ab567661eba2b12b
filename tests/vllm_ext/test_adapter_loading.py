"""Adapters on pruned models in real engines: log-probabilities as of the dense model with the adapter, less blocks.

The reference is the dense model in transformers with the adapter put on it by peft, and its dropped blocks passed by.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mi_prun.errors import UserError
from vllm_ext import adapter_loading, compat

DROPPED = (3, 4, 8)
ADAPTED = [1, 3, 5, 6, 11]  # of the dense model; one of them is dropped
PROMPT = [5, 60, 700, 33, 900, 41, 8, 77, 300, 12]
ENGINE = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1, "max_cpu_loras": 1}


@torch.inference_mode()
def log_probs_of(model: Any, passed_by: Sequence[int] = ()) -> torch.Tensor:
    """Return log p of PROMPT's tokens but the first; blocks that are passed by hand on what they get."""

    def hand_on(block: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        return inputs[0]

    blocks = model.get_submodule("base_model.model.model.layers" if hasattr(model, "peft_config") else "model.layers")
    hooks = [blocks[block].register_forward_hook(hand_on) for block in passed_by]
    logits = model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, :-1]
    for hook in hooks:
        hook.remove()
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(PROMPT[1:])[:, None])[:, 0]


@pytest.fixture
def adapter(reference: Path, tmp_path: Path) -> Path:
    """Made and saved by peft: other ranks by block, and random weights that matter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=["q_proj", "o_proj", "down_proj"],
        layers_to_transform=ADAPTED,
        rank_pattern={r"layers\.(5|6)\.self_attn\.o_proj": 8},
        alpha_pattern={r"layers\.11\..*": 40},
        init_lora_weights=False,
    )
    base = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_installed_vllm_reads_adapters_as_this_release_knows() -> None:
    assert callable(compat.lora_manager_class()._load_adapter)


def test_a_vllm_that_reads_them_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        def __init__(self, vllm_config: Any) -> None: ...
        def _load_adapter(self, name: str, path: str) -> None: ...

    class Module:
        WorkerLoRAManager = Manager

    monkeypatch.setattr(compat, "_first_of", lambda names: Module)
    with pytest.raises(UserError, match="reads adapters in another way than this release knows"):
        adapter_loading.renumber_adapters()


def test_an_adapter_of_a_pruned_model_is_refused_on_a_dense_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded at run time, too, where `mi-prun-serve` has not looked at it: its blocks would be others."""
    loaded: list[str] = []

    class Manager:
        def __init__(self, vllm_config: Any) -> None: ...
        def _load_adapter(self, lora_request: Any) -> None:
            loaded.append(lora_request.lora_path)

    monkeypatch.setattr(compat, "lora_manager_class", lambda: Manager)
    monkeypatch.setattr(compat, "adapter_folder", Path)
    monkeypatch.setattr(adapter_loading, "pruned_model", lambda model_config: None)
    adapter_loading.renumber_adapters()
    manager = Manager(SimpleNamespace(model_config=None))
    for name, whose in (("own", "pruned"), ("dense", "dense")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"mi_prun_blocks": whose}))
    with pytest.raises(UserError, match="was trained on a pruned model"):
        manager._load_adapter(SimpleNamespace(lora_path=str(tmp_path / "own")))
    for place in (str(tmp_path / "dense"), "owner/adapter"):
        manager._load_adapter(SimpleNamespace(lora_path=place))
    assert loaded == [str(tmp_path / "dense"), "owner/adapter"]


@pytest.mark.engine
def test_log_probabilities_are_those_of_the_dense_model_with_the_adapter_less_the_blocks(
    in_engine: Callable[..., Any], prune: Callable[..., Path], reference: Path, adapter: Path, tmp_path: Path
) -> None:
    """On a written folder as `vllm serve` loads it, and on a virtual one. The memory holds one adapter: each call reads
    its own again. An adapter that may be either model's is refused, and the engine goes on."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    written = prune(reference, tmp_path / "written", DROPPED)
    virtual = prune(reference, tmp_path / "virtual", DROPPED, virtual=True)
    own, unclear = (Path(shutil.copytree(adapter, tmp_path / name)) for name in ("own", "unclear"))
    renumber_by_hand(adapter, own, base=written)
    renumber_by_hand(adapter, unclear, base=Path("nowhere/at-all"))
    job = {
        "calls": [
            {"prompts": [PROMPT], "sampling": {"prompt_logprobs": 0}, **which}
            for which in ({"adapter": str(adapter)}, {}, {"adapter": str(unclear)}, {"adapter": str(own)}, {})
        ]
    }
    jobs = [
        job | {"model": str(written), "engine": ENGINE},
        job | {"model": str(virtual), "engine": ENGINE | {"load_format": "mi_prun"}},
    ]
    results = in_engine(jobs)["results"]

    dense = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    without = log_probs_of(dense, DROPPED)
    adapted = log_probs_of(PeftModel.from_pretrained(dense, adapter).eval(), DROPPED)
    assert (adapted - without).abs().max() > 0.1  # else the test would say nothing
    for result in results:
        assert list(result["refused"]) == ["2"]
        assert "may be those of the pruned model (9 blocks) or of the dense one (12)" in result["refused"]["2"]
        for (found,), wanted in zip(result["log_probs_by_call"], (adapted, without, adapted, without), strict=True):
            assert (torch.tensor(found) - wanted).abs().max() < 1e-3


def renumber_by_hand(adapter: Path, out: Path, base: Path) -> None:
    """The same adapter as peft would have saved it of the pruned model."""
    from safetensors.torch import load_file, save_file

    kept = [block for block in range(12) if block not in DROPPED]

    def new_name(name: str) -> str:
        before, number, after = name.partition("layers.")[0], name.split(".")[4], name.split(".", 5)[5]
        return f"{before}layers.{kept.index(int(number))}.{after}"

    tensors = load_file(adapter / "adapter_model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if int(name.split(".")[4]) in kept}
    save_file({new_name(name): tensor for name, tensor in left.items()}, out / "adapter_model.safetensors")
    fields = json.loads((out / "adapter_config.json").read_text())
    fields |= {
        "base_model_name_or_path": str(base),
        "rank_pattern": {r"layers\.(3|4)\.self_attn\.o_proj": 8},
        "alpha_pattern": {r"layers\.8\..*": 40},
    }
    (out / "adapter_config.json").write_text(json.dumps(fields))
