"""Calibration text sampled from the dense model itself.

It needs no download, and it has the very distribution that KL(dense || pruned) is about.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mi_prun.console import progress
from mi_prun.errors import UserError

# Rows sampled at once. On CPU more rows are slower: their KV cache falls out of the processor's cache. On an
# accelerator more rows cost next to nothing: the limit is its memory, in tokens of KV cache.
CPU_ROWS = 16
ACCELERATOR_TOKENS = 131_072


@torch.inference_mode()
def sample_windows(model: Any, tokenizer: Any, *, windows: int, window_tokens: int, seed: int) -> Tensor:
    """Sample token ids (windows, window_tokens) from the model, at temperature 1 from the whole distribution.

    A window starts at BOS, else EOS, else a token drawn by the seed. After the end of a text the next one follows, as
    in packed training.
    """
    start = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), None)
    device = next(model.parameters()).device
    # The seed must not depend on what else drew numbers before.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        done: list[Tensor] = []
        with progress("sampling text from the model", windows * window_tokens, "tokens") as advance:
            batch = CPU_ROWS if device.type == "cpu" else rows_at_once(model, device, window_tokens)
            for first in range(0, windows, batch):
                count = min(batch, windows - first)
                tokens = (
                    torch.full((count, 1), start, dtype=torch.long)
                    if start is not None
                    else torch.randint(model.config.get_text_config().vocab_size, (count, 1))
                ).to(device)
                done.append(_continue(model, tokens, window_tokens, advance))
    return torch.cat(done).cpu()


def rows_at_once(model: Any, device: torch.device, window_tokens: int) -> int:
    """Return how many rows to sample at once on an accelerator: their KV cache fits in half of its free memory."""
    rows = ACCELERATOR_TOKENS // window_tokens
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        element = next(model.parameters()).element_size()
        rows = min(rows, free // 2 // (window_tokens * kv_elements(model.config.get_text_config()) * element))
    return max(1, rows)


def kv_elements(config: Any) -> int:
    """Return how many elements the keys and values of one token have in all blocks.

    Every block counts as if it attended to everything, so a cache never holds more.
    """
    heads = config.num_attention_heads
    if getattr(config, "kv_lora_rank", None):  # unpacked: not every release of transformers caches the latent state
        size = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        return int(config.num_hidden_layers * heads * size)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kv_heads * size)


def _continue(model: Any, tokens: Tensor, length: int, advance: Any) -> Tensor:
    """Sample until each row has `length` tokens. `generate` would stop at EOS and cannot be asked to go on."""
    cache = None
    step = tokens
    rows = [tokens]
    for _ in range(length - 1):
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[:, -1].float()
        if not torch.isfinite(logits).all():
            raise UserError("the model itself gives logits that are not finite: no text can be sampled from it")
        step = torch.multinomial(torch.softmax(logits, dim=-1), 1)
        rows.append(step)
        advance(len(step))
    return torch.cat(rows, dim=1)
