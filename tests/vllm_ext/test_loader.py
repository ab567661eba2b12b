"""Load format `mi_prun` on real vLLM: a virtual folder says, bit for bit, what the written checkpoint says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mi_prun.model import open_model

pytestmark = pytest.mark.engine

DROPPED = (1, 2, 4)
PROMPTS = [[(7 * place + 13 * row) % 97 for place in range(24)] for row in range(3)]
SAMPLING = {"prompt_logprobs": 0}
# Heads of 32 are the smallest that vLLM's CPU attention has.
WIDE = {"hidden_size": 128, "head_dim": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sharded, own head": ("llama", WIDE | {"tie_word_embeddings": False, "max_shard_size": "400KB"}),
    "kinds by block": ("gemma3_text", WIDE | {"sliding_window": 8, "tie_word_embeddings": True}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("qwen2", WIDE | {"tie_word_embeddings": True}),
    "names without a prefix": ("gpt2", {"hidden_size": 128}),
    "another prefix": ("gpt_neox", {"hidden_size": 128}),
    "norms in other places": ("olmo2", WIDE),
    "experts": ("qwen3_moe", WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "experts of another name": ("mixtral", WIDE | {"num_local_experts": 4}),
}


def job(folder: Path, load_format: str, **engine: Any) -> dict[str, Any]:
    return {
        "model": str(folder),
        "prompts": PROMPTS,
        "sampling": SAMPLING,
        "engine": {"load_format": load_format} | engine,
    }


def bytes_read(said: list[str]) -> list[int]:
    """Of each rank, as the loader logged it."""
    found = [re.search(r"read \d+ of \d+ tensors, ([\d,]+) bytes", line) for line in said]
    return [int(match[1].replace(",", "")) for match in found if match]


def test_a_virtual_folder_says_what_the_written_one_says(
    in_engine: Callable[..., Any], tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path
) -> None:
    """Log-probabilities of stock vLLM on the written checkpoint, of the loader on it, and of the virtual folder.

    That these are the dense model's without the blocks is tested where checkpoints are written. Two families by default
    (25 s each); more with MI_PRUN_ALL_FAMILIES=1.
    """
    cases = CASES | (MORE if os.environ.get("MI_PRUN_ALL_FAMILIES") else {})
    jobs, kept_bytes = [], []
    for number, (model_type, fields) in enumerate(cases.values()):
        dense = tiny(model_type, folder=f"dense-{number}", **fields)
        written = prune(dense, tmp_path / f"written-{number}", DROPPED)
        virtual = prune(dense, tmp_path / f"virtual-{number}", DROPPED, virtual=True)
        kept_bytes.append(open_model(written).weight_bytes)
        jobs += [job(written, "auto"), job(written, "mi_prun"), job(virtual, "mi_prun")]
    results = in_engine(jobs)["results"]
    for number, case in enumerate(cases):
        stock, written_says, virtual_says = results[3 * number : 3 * number + 3]
        assert virtual_says["log_probs"] == written_says["log_probs"] == stock["log_probs"], case
        assert len(stock["log_probs"]) == len(PROMPTS), case
        assert all(len(row) == 23 for row in stock["log_probs"]), case
        assert bytes_read(virtual_says["said"]) == bytes_read(written_says["said"]) == [kept_bytes[number]], case


@pytest.fixture
def both(tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A written and a virtual folder of three blocks that are the same size, beside embeddings and a head."""
    dense = tiny("llama", **WIDE, tie_word_embeddings=False)
    return prune(dense, tmp_path / "written", (1, 4)), prune(dense, tmp_path / "virtual", (1, 4), virtual=True)


def check_parallel(in_engine: Callable[..., Any], both: tuple[Path, Path], **engine: Any) -> None:
    """On two ranks both folders say the same, and what one rank says (their sums are added in another order)."""
    alone = in_engine([job(both[0], "mi_prun")])["results"][0]
    for folder in both:
        found = in_engine([job(folder, "mi_prun", **engine)], two_ranks=True)["results"][0]
        for row, wanted in zip(found["log_probs"], alone["log_probs"], strict=True):
            assert row == pytest.approx(wanted, abs=1e-4)


def test_tensor_parallel(in_engine: Callable[..., Any], both: tuple[Path, Path]) -> None:
    check_parallel(in_engine, both, tensor_parallel_size=2)
