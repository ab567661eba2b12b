"""The pruned model as the draft of the dense one, on real vLLM: the dense answers, on the dense weights."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

DROPPED = (3, 7)
DRAFT_TOKENS = 3
SAMPLED = [505, 692, 443, 1776, 263, 827, 284]  # "The old man opened the door and"
PROMPTS = 100
TOKENS = 12
SAMPLES = 600
TEMPERATURE = 0.7
EXPECTED = 5.0  # the least that chi-square takes; rarer sequences are counted together

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def prompts(reference: Path) -> list[list[int]]:
    """Token ids: pieces of this repository's licence, of many lengths and beginnings."""
    from transformers import AutoTokenizer

    text = (reference.parents[1] / "LICENSE").read_text()
    tokens: list[int] = AutoTokenizer.from_pretrained(reference)(text)["input_ids"]
    chance = random.Random(5)
    starts = [chance.randrange(len(tokens) - 64) for _ in range(PROMPTS)]
    return [tokens[start : start + chance.randint(4, 48)] for start in starts]


@pytest.fixture(scope="module")
def said(
    in_engine: Callable[..., Any],
    prune: Callable[..., Path],
    reference: Path,
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """One engine with a draft and one without, on the same prompts; then many samples of one prompt, drafted."""
    draft = prune(reference, tmp_path_factory.mktemp("draft") / "draft", DROPPED, virtual=True)
    engine = {"load_format": "mi_prun", "max_model_len": 128, "max_num_seqs": 128, "disable_log_stats": False}
    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": DRAFT_TOKENS}
    drafting = engine | {"speculative_config": speculative, "worker_extension_cls": "in_engine.Extension"}
    greedy = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    sampled = {"max_tokens": 2, "temperature": TEMPERATURE, "ignore_eos": True, "n": SAMPLES}
    dense = {"model": str(reference), "prompts": prompts, "engine": engine, "sampling": greedy}
    likeliest = greedy | {"temperature": 1.0, "top_k": 1}
    calls = [
        {"prompts": prompts, "sampling": greedy},
        {"prompts": [SAMPLED], "sampling": sampled},
        {"prompts": prompts[:8], "sampling": likeliest},
    ]
    found = in_engine([dense, dense | {"engine": drafting, "calls": calls, "memory": True}])
    return {"dense": found["results"][0], "drafted": found["results"][1], "held": found["held"]}


def test_greedy_answers_are_the_dense_models_token_for_token(said: dict[str, Any]) -> None:
    dense, drafted = said["dense"]["tokens"], said["drafted"]["tokens"]
    assert len(dense) == len(drafted) == PROMPTS
    assert all(len(tokens) == TOKENS for outputs in dense for tokens in outputs)
    assert drafted == dense


def test_some_drafted_tokens_are_accepted_and_some_are_not(said: dict[str, Any]) -> None:
    """Else the test above would say nothing of acceptance, or of rejection."""
    metrics = said["drafted"]["metrics"]
    drafted, accepted = (metrics[f"vllm:spec_decode_num_{name}_tokens"] for name in ("draft", "accepted"))
    assert 0.2 * drafted < accepted < 0.98 * drafted


def test_weights_are_in_memory_once(said: dict[str, Any]) -> None:
    memory = said["drafted"]["memory"]
    assert memory["own_leaves"] == ["Attention"]  # each other module is the target's own, with all that it holds
    # What vLLM on CPU packs is no parameter any more: these are the embeddings, and scales of a few bytes a block.
    assert memory["target_bytes"] > 4_000_000
    assert memory["together_bytes"] - memory["target_bytes"] < 1_000


def test_there_is_no_second_copy_while_it_is_built(said: dict[str, Any]) -> None:
    assert said["held"] == [0]


def test_it_has_a_kv_cache_of_its_own(said: dict[str, Any]) -> None:
    memory = said["drafted"]["memory"]
    caches = [*memory["target_caches"].values(), *memory["draft_caches"].values()]
    assert len(memory["target_caches"]) == 12
    assert len(memory["draft_caches"]) == 10
    assert len(set(caches)) == 22
    assert not memory["target_caches"].keys() & memory["draft_caches"].keys()


@torch.inference_mode()
def expected_counts(model: Any, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Of SAMPLES sequences of two tokens: how many of each there should be, where it is EXPECTED or more."""
    found: dict[tuple[int, ...], float] = {(): float(SAMPLES)}
    for _ in range(2):
        rows = torch.tensor([[*prompt, *tokens] for tokens in found])
        shares = torch.softmax(model(rows, use_cache=False).logits[:, -1] / TEMPERATURE, -1)
        found = {
            (*tokens, int(token)): count * float(row[token])
            for (tokens, count), row in zip(found.items(), shares, strict=True)
            for token in (count * row >= EXPECTED).nonzero()[:, 0]
        }
    return found


def p_value(counts: Counter[tuple[int, ...]], wanted: dict[tuple[int, ...], float]) -> float:
    """Chi-square, with one bin for all sequences that `wanted` leaves out."""
    seen = [counts[tokens] for tokens in wanted]
    expected = list(wanted.values())
    assert len(wanted) > 10
    return float(chisquare([*seen, SAMPLES - sum(seen)], [*expected, SAMPLES - sum(expected)]).pvalue)


def test_sampled_answers_have_the_dense_models_distribution(said: dict[str, Any], reference: Path) -> None:
    """The second token of each was drafted. The draft's own distribution would not pass the same test."""
    from transformers import AutoModelForCausalLM

    (outputs,) = said["drafted"]["calls"][1]
    counts = Counter(map(tuple, outputs))
    assert counts.total() == SAMPLES
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    assert p_value(counts, expected_counts(model, SAMPLED)) > 1e-3
    for block in reversed(DROPPED):
        del model.model.layers[block]
    assert p_value(counts, expected_counts(model, SAMPLED)) < 1e-6


def test_the_likeliest_token_alone_is_the_greedy_one(said: dict[str, Any]) -> None:
    """Top-k of 1 at temperature 1, by way of the sampler of random requests."""
    assert said["drafted"]["calls"][2] == said["dense"]["tokens"][:8]


WIDE = {"hidden_size": 128, "head_dim": 32}
SEVERAL_KINDS = ("gemma3_text",)
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3_text": WIDE | {"sliding_window": 8},
    "qwen2": WIDE | {"tie_word_embeddings": True},
    "gpt2": {"hidden_size": 128},
    "qwen3_moe": WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mixtral": WIDE | {"num_local_experts": 4},
}


@pytest.mark.skipif("MI_PRUN_ALL_FAMILIES" not in os.environ, reason="MI_PRUN_ALL_FAMILIES=1 tries more families")
def test_other_families(
    in_engine: Callable[..., Any], tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path
) -> None:
    prompts = [[(7 * place + 13 * row) % 97 for place in range(16)] for row in range(4)]
    greedy = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    jobs = []
    for model_type, fields in FAMILIES.items():
        dense = tiny(model_type, folder=model_type, **fields)
        draft = prune(dense, tmp_path / f"{model_type}-draft", (2,), virtual=True)
        speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 2}
        engine = {"load_format": "mi_prun", "disable_log_stats": False}
        if model_type in SEVERAL_KINDS:
            engine["disable_hybrid_kv_cache_manager"] = True  # as mi-prun-serve has it
        drafting = engine | {"speculative_config": speculative, "worker_extension_cls": "in_engine.Extension"}
        alone = {"model": str(dense), "prompts": prompts, "sampling": greedy, "engine": engine}
        jobs += [alone, alone | {"engine": drafting, "memory": True}]
    results = in_engine(jobs)["results"]
    for number, model_type in enumerate(FAMILIES):
        alone, drafted = results[2 * number : 2 * number + 2]
        assert drafted["tokens"] == alone["tokens"], model_type
        assert drafted["memory"]["own_leaves"] == ["Attention"], model_type
        assert drafted["metrics"]["vllm:spec_decode_num_draft_tokens"] > 0, model_type
