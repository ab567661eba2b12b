"""In a real engine on a GPU: written, through the loader and virtual are one model, the one that transformers has
without the blocks; a draft has no second copy of the weights. Skipped where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DROPPED = (2, 3, 7)
ENGINE = {"dtype": "bfloat16", "gpu_memory_utilization": 0.08, "max_model_len": 256, "max_num_seqs": 16}
GREEDY = {"max_tokens": 48, "temperature": 0, "ignore_eos": True, "prompt_logprobs": 0}


@pytest.fixture(scope="module")
def prompts(reference: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokens: list[int] = AutoTokenizer.from_pretrained(reference)((reference.parents[1] / "LICENSE").read_text())[
        "input_ids"
    ]
    return [tokens[start : start + 40] for start in range(0, 400, 50)]


@pytest.fixture(scope="module")
def folders(prune: Callable[..., Path], reference: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("cuda")
    return prune(reference, home / "written", DROPPED), prune(reference, home / "virtual", DROPPED, virtual=True)


@torch.inference_mode()
def test_the_loader_says_what_vllm_and_transformers_say(
    in_engine: Callable[..., Any], folders: tuple[Path, Path], prompts: list[list[int]]
) -> None:
    from transformers import AutoModelForCausalLM

    written, virtual = folders
    jobs = [
        {"model": str(folder), "prompts": prompts, "sampling": GREEDY, "engine": ENGINE | {"load_format": load_format}}
        for folder, load_format in ((written, "auto"), (written, "mi_prun"), (virtual, "mi_prun"))
    ]
    stock, ours, without = in_engine(jobs)["results"]
    assert stock["log_probs"] == ours["log_probs"] == without["log_probs"]
    assert stock["tokens"] == ours["tokens"] == without["tokens"]
    model = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32).to("cuda").eval()
    for row, found in zip(prompts, stock["log_probs"], strict=True):
        tokens = torch.tensor([row], device="cuda")
        log_p = torch.log_softmax(model(tokens, use_cache=False).logits[0, :-1], -1)
        wanted = log_p.gather(-1, tokens[0, 1:, None])[:, 0].cpu()
        assert (torch.tensor(found) - wanted).abs().mean() < 0.05  # bfloat16 against float32


def test_a_draft_shares_the_weights_and_foresees_tokens(
    in_engine: Callable[..., Any], folders: tuple[Path, Path], reference: Path, prompts: list[list[int]]
) -> None:
    speculative = {"method": "draft_model", "model": str(folders[1]), "num_speculative_tokens": 3}
    drafting = ENGINE | {
        "load_format": "mi_prun",
        "disable_log_stats": False,
        "speculative_config": speculative,
        "worker_extension_cls": "in_engine.Extension",
    }
    greedy = GREEDY | {"prompt_logprobs": None}
    dense = {"model": str(reference), "prompts": prompts, "sampling": greedy, "engine": ENGINE}
    plain, drafted = in_engine([dense, dense | {"engine": drafting, "memory": True}])["results"]
    memory, metrics = drafted["memory"], drafted["metrics"]
    assert memory["together_bytes"] - memory["target_bytes"] < 1_000
    assert metrics["vllm:spec_decode_num_accepted_tokens"] > 0.2 * metrics["vllm:spec_decode_num_draft_tokens"]
    # Sums in another order: where two tokens are as likely in bfloat16 an answer may part from the other's.
    same = [a == b for a, b in zip(drafted["tokens"], plain["tokens"], strict=True)]
    assert sum(same) >= len(same) / 2
