"""Calibration text sampled from the dense model itself.

It needs no download, and it has the very distribution that KL(dense || pruned) is about.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.model.loading import free_bytes

# Rows sampled at once: a step reads all weights whatever the rows are. Their keys and values bound them, on a CPU by a
# constant: the seed alone decides what is sampled, not the memory that is free.
CPU_CACHE_BYTES = 2 << 30
ACCELERATOR_TOKENS = 131_072


def start_of_sampled(tokenizer: Any) -> int | None:
    """Return the token, no text itself, that a sampled text begins with: BOS, else EOS; None where there is none."""
    return next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), None)


@torch.no_grad()  # not `inference_mode`: blocks that are shared over processes keep the buffers of their first run
def sample_windows(
    model: Any, tokenizer: Any, *, windows: int, window_tokens: int, seed: int, at_once: int | None = None
) -> Tensor:
    """Sample token ids (windows, window_tokens) from the model, at temperature 1 from the whole distribution.

    A window starts at BOS, else EOS, else a token drawn by the seed. After the end of a text the next one follows, as
    in packed training. at_once: windows at a time, at most; None: `rows_at_once`.
    """
    start = start_of_sampled(tokenizer)
    rows = int(model.config.get_text_config().vocab_size)
    if start is not None and not 0 <= start < rows:
        raise UserError(
            f"a sampled text begins with token {start} of the tokenizer, but the embedding has {rows} rows; correct "
            "bos_token or eos_token, or resize the embedding and train it"
        )
    device = next(model.parameters()).device
    # The seed must not depend on what else drew numbers before.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        done: list[Tensor] = []
        with progress("sampling text from the model", windows * window_tokens, "tokens") as advance:
            batches = math.ceil(windows / (at_once or rows_at_once(model, window_tokens)))
            batch = math.ceil(windows / batches)  # none of them nearly empty
            for first in range(0, windows, batch):
                count = min(batch, windows - first)
                tokens = (
                    torch.full((count, 1), start, dtype=torch.long)
                    if start is not None
                    else torch.randint(rows, (count, 1))
                ).to(device)
                done.append(_continue(model, tokens, window_tokens, advance))
    return torch.cat(done).cpu()


def rows_at_once(model: Any, window_tokens: int) -> int:
    """Return how many rows to sample at once: as many as CPU_CACHE_BYTES, or half of a GPU's memory, have room for."""
    first = next(model.parameters())
    device: torch.device = first.device
    element: int = first.element_size()
    row_bytes = window_tokens * kv_elements(model.config.get_text_config()) * element
    if device.type == "cpu":
        return max(1, CPU_CACHE_BYTES // row_bytes)
    rows = ACCELERATOR_TOKENS // window_tokens
    if device.type == "cuda":
        rows = min(rows, free_bytes(device) // 2 // row_bytes)
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
        if cache is None:
            cache = output.past_key_values
            _make_room(cache, length)
        logits = output.logits[:, -1].float()
        if not torch.isfinite(logits).all():
            raise UserError("the model itself gives logits that are not finite: no text can be sampled from it")
        step = _draw(torch.softmax(logits, dim=-1))
        rows.append(step)
        advance(len(step))
    return torch.cat(rows, dim=1)


def _draw(probabilities: Tensor) -> Tensor:
    """Draw one token a row (rows, 1). On a CPU by the inverse of the distribution: `multinomial` draws a number for
    each entry of the vocabulary, and takes 2.5 times as long.
    """
    if probabilities.device.type != "cpu":
        return torch.multinomial(probabilities, 1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    place = torch.rand(len(probabilities), 1, dtype=torch.float64) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, place, right=True).clamp(max=probabilities.shape[-1] - 1)


def _make_room(cache: Any, length: int) -> None:
    """Let each layer of a cache that grows without bound write into room for `length` tokens."""
    for layer in getattr(cache, "layers", ()):
        if type(layer).__name__ == "DynamicLayer":  # one with a window forgets, and is short
            layer.update = _Room(layer, length)


class _Room:
    """The `update` of a cache layer with its room made beforehand: transformers' own copies all of it at each token."""

    def __init__(self, layer: Any, length: int) -> None:
        self._layer = layer
        self._used = layer.keys.shape[-2]
        self._rooms = [part.new_empty(*part.shape[:-2], length, part.shape[-1]) for part in (layer.keys, layer.values)]
        for room, part in zip(self._rooms, (layer.keys, layer.values), strict=True):
            room[..., : self._used, :] = part

    def __call__(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        begin, self._used = self._used, self._used + keys.shape[-2]
        for room, part in zip(self._rooms, (keys, values), strict=True):
            room[..., begin : self._used, :] = part
        self._layer.keys, self._layer.values = (room[..., : self._used, :] for room in self._rooms)
        return self._layer.keys, self._layer.values
