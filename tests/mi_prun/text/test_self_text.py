"""Text sampled from the model: by its own distribution, by the seed alone, and disturbing nobody's random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.text import self_text
from mi_prun.text.self_text import kv_elements, rows_at_once, sample_windows, start_of_sampled

pytestmark = pytest.mark.numeric

TOKENIZER = SimpleNamespace(bos_token_id=1, eos_token_id=2)


@pytest.fixture
def model(tiny: Callable[..., Path]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny("llama"), local_files_only=True).eval()


def test_the_seed_alone_decides(model: Any) -> None:
    first = sample_windows(model, TOKENIZER, windows=20, window_tokens=12, seed=4)
    assert first.shape == (20, 12)
    assert (first[:, 0] == 1).all()
    torch.rand(3)
    assert torch.equal(sample_windows(model, TOKENIZER, windows=20, window_tokens=12, seed=4), first)
    assert not torch.equal(sample_windows(model, TOKENIZER, windows=20, window_tokens=12, seed=5), first)
    assert len({tuple(row) for row in first.tolist()}) == 20


def test_random_numbers_of_others_are_not_disturbed(model: Any) -> None:
    torch.manual_seed(9)
    wanted = torch.rand(2)
    torch.manual_seed(9)
    sample_windows(model, TOKENIZER, windows=2, window_tokens=4, seed=0)
    assert torch.equal(torch.rand(2), wanted)


@torch.inference_mode()
def test_tokens_come_as_often_as_the_model_says(model: Any) -> None:
    drawn = sample_windows(model, TOKENIZER, windows=4_000, window_tokens=2, seed=0)[:, 1]
    wanted = torch.softmax(model(input_ids=torch.tensor([[1]])).logits[0, -1], -1)
    shares = torch.bincount(drawn, minlength=97) / 4_000
    assert float((shares - wanted).abs().sum() / 2) < 0.1
    uniform = torch.full((97,), 1 / 97)
    assert float((shares - uniform).abs().sum() / 2) > 0.2


def test_without_bos_a_text_starts_at_eos_else_anywhere(model: Any) -> None:
    eos = SimpleNamespace(bos_token_id=None, eos_token_id=2)
    neither = SimpleNamespace(bos_token_id=None, eos_token_id=None)
    assert (sample_windows(model, eos, windows=8, window_tokens=3, seed=0)[:, 0] == 2).all()
    starts = sample_windows(model, neither, windows=8, window_tokens=3, seed=0)[:, 0]
    assert len(set(starts.tolist())) > 1


def test_a_first_token_without_a_row_is_refused(model: Any) -> None:
    beyond = SimpleNamespace(bos_token_id=97, eos_token_id=2)
    with pytest.raises(UserError, match=r"begins with token 97 of the tokenizer, but the embedding has 97 rows"):
        sample_windows(model, beyond, windows=1, window_tokens=3, seed=0)


def test_the_token_that_a_sampled_text_begins_with_is_no_text() -> None:
    assert start_of_sampled(TOKENIZER) == 1
    assert start_of_sampled(SimpleNamespace(bos_token_id=None, eos_token_id=2)) == 2
    assert start_of_sampled(SimpleNamespace(bos_token_id=None, eos_token_id=None)) is None


def test_a_model_that_says_nothing_finite_is_one_line(tiny: Callable[..., Path], load: Callable[[Path], Any]) -> None:
    broken = load(tiny("llama")).model
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    tokenizer = SimpleNamespace(bos_token_id=1, eos_token_id=2)
    with pytest.raises(UserError, match="not finite: no text can be sampled"):
        sample_windows(broken, tokenizer, windows=1, window_tokens=4, seed=0)


def cached(model: Any) -> int:
    cache = model(input_ids=torch.tensor([[3]]), use_cache=True).past_key_values
    return sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)


def test_keys_and_values_of_a_token(tiny: Callable[..., Path], load: Callable[[Path], Any]) -> None:
    """They are as many elements as a cache holds after it."""
    model = load(tiny("qwen3")).model
    assert kv_elements(model.config) == cached(model)


def test_a_latent_cache_may_be_kept_unpacked(tiny: Callable[..., Path], load: Callable[[Path], Any]) -> None:
    """Its key heads of 4 elements alone would be too few to reckon with."""
    sizes = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    model = load(tiny("deepseek_v3", head_dim=4, first_k_dense_replace=6, num_key_value_heads=4, **sizes)).model
    assert kv_elements(model.config) == 6 * 4 * (8 + 4 + 8) >= cached(model)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3", "deepseek_v3"])
@torch.inference_mode()
def test_a_text_is_that_of_a_model_without_a_cache(
    tiny: Callable[..., Path], load: Callable[[Path], Any], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token is drawn from what the model says of all the text before it: with a greedy draw the two agree."""
    sizes: dict[str, Any] = {}
    if family == "deepseek_v3":
        sizes = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
        sizes |= {"head_dim": 4, "first_k_dense_replace": 6, "num_key_value_heads": 4}
    if family == "gemma3_text":
        sizes = {"sliding_window": 8, "head_dim": 8}
    model = load(tiny(family, **sizes)).model
    monkeypatch.setattr(self_text, "_draw", lambda probabilities: probabilities.argmax(-1, keepdim=True))
    tokens = sample_windows(model, TOKENIZER, windows=2, window_tokens=24, seed=0)
    logits = model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(tokens[:, 1:], logits[:, :-1].argmax(-1))


def test_rows_at_once_fit_the_memory(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of even size, whatever the memory holds; what is drawn is drawn for each row."""
    row_bytes = 12 * kv_elements(model.config) * 4
    monkeypatch.setattr(self_text, "CPU_CACHE_BYTES", 7 * row_bytes)
    assert rows_at_once(model, 12) == 7
    tokens = sample_windows(model, TOKENIZER, windows=15, window_tokens=12, seed=0)
    assert tokens.shape == (15, 12)
    assert len({tuple(row) for row in tokens.tolist()}) == 15
