"""Bound the speed-up of a phase by the dropped bytes and FLOPs: no engine on any machine can pass it.

A step takes at least max(bytes / bandwidth, FLOPs / rate). Whatever the machine's two numbers are, the quotient of two
such maxima is at most the larger of the two quotients:

    bound = max(dense bytes / pruned bytes, dense FLOPs / pruned FLOPs)

So no bandwidth need be known (the roofline itself: Williams, Waterman and Patterson 2009). What counts:

    bytes   weights of the kept blocks (of the experts that b tokens reach, where there are experts), head, final norm,
            a row of the embedding for each token; keys and values: of the context read, of the new tokens written
    FLOPs   2 for each weight of a matrix and token; 2 x 2 for each query-key pair and each of the heads x head size;
            the head for the last token of a prompt only

Activations are left out: they stay in the caches, or are the same share of every block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.models.weights import Block, Weights
from bench.records.schema import Phase


@dataclass(frozen=True)
class Work:
    """What a step of a model reads and computes."""

    num_bytes: int
    flops: int


def decode(weights: Weights, batch: int, context: int) -> Work:
    """Return the work of one decode step of `batch` requests, each with `context` tokens in the KV cache."""
    reached = _experts_reached(weights, batch)
    num_bytes = weights.head_bytes + weights.rest_bytes + batch * weights.row_bytes
    flops = 2 * batch * weights.head_elements
    for block in weights.blocks:
        num_bytes += block.num_bytes + round(reached * block.expert_bytes)
        flops += 2 * batch * _elements(weights, block)
        if block.attends:
            seen = min(context, block.window or context)
            num_bytes += batch * (seen + 1) * weights.kv_bytes  # read, and the new token's written
            flops += 4 * batch * (seen + 1) * weights.attention_width
    return Work(num_bytes, flops)


def prefill(weights: Weights, batch: int, tokens: int) -> Work:
    """Return the work of one step over `batch` prompts of `tokens` tokens, with causal attention."""
    reached = _experts_reached(weights, batch * tokens)
    num_bytes = weights.head_bytes + weights.rest_bytes + batch * tokens * weights.row_bytes
    flops = 2 * batch * weights.head_elements
    for block in weights.blocks:
        num_bytes += block.num_bytes + round(reached * block.expert_bytes)
        flops += 2 * batch * tokens * _elements(weights, block)
        if block.attends:
            num_bytes += batch * tokens * weights.kv_bytes
            flops += 4 * batch * _pairs(tokens, block.window) * weights.attention_width
    return Work(num_bytes, flops)


def work(phase: Phase, weights: Weights, batch: int, tokens: int) -> Work:
    """Return the work of a step of a phase. tokens: of each prompt (prefill), or in each KV cache (decode)."""
    return decode(weights, batch, tokens) if phase == "decode" else prefill(weights, batch, tokens)


def bound(dense: Work, pruned: Work) -> float:
    """Return how many times faster the pruned step can be, at most."""
    return max(dense.num_bytes / pruned.num_bytes, dense.flops / pruned.flops)


def most(dense: Weights, pruned: Weights, longest: int) -> float:
    """Return how many times faster the pruned model can be, at most, in any mixture of steps up to `longest` tokens.

    The quotient of two sums is at most the largest quotient of their parts, and what is outside the blocks is the same
    in both. Attention reads min(context, window) tokens of a block: between two windows the quotient is monotone.
    """
    windows = {block.window for block in dense.blocks if block.window and block.window < longest}
    parts: list[Callable[[Block], int]] = [
        lambda block: block.num_bytes,
        lambda block: block.expert_bytes,
        lambda block: block.elements,
        lambda block: block.expert_elements,
    ]
    for context in (1, *windows, longest):
        parts.append(lambda block, context=context: min(context, block.window or context) if block.attends else 0)  # type: ignore[misc]
    sums = [(sum(map(part, dense.blocks)), sum(map(part, pruned.blocks))) for part in parts]
    return max(1.0, *(before / after for before, after in sums if after))


def _elements(weights: Weights, block: Block) -> int:
    share = weights.experts_per_token / weights.experts if weights.experts else 0.0
    return block.elements + round(share * block.expert_elements)


def _experts_reached(weights: Weights, tokens: int) -> float:
    """Return the share of a block's experts that at least one of `tokens` tokens reaches, if they are spread evenly."""
    if not weights.experts:
        return 1.0
    return 1.0 - (1.0 - weights.experts_per_token / weights.experts) ** tokens


def _pairs(tokens: int, window: int | None) -> int:
    """Count the query-key pairs of causal attention: a token sees itself and what is before it, at most `window`
    tokens.
    """
    full = min(tokens, window or tokens)
    return full * (full + 1) // 2 + (tokens - full) * full
