"""Bounds of hand-made shapes, worked out in the head, and of real ones, worked out on paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.models.measured_model import MeasuredModel
from bench.models.roofline import Work, bound, decode, most, prefill, work
from bench.models.shape import open_shape, spread
from bench.models.weights import Block, Weights, weights_of_config
from bench.records.schema import PointRecord, Trace
from bench.sweeps.aggregate import bound_of
from mi_prun.plan.plan import kept_blocks


def test_a_decode_step_reads_all_weights_once_and_each_requests_cache(toy_weights: Weights) -> None:
    assert decode(toy_weights, batch=1, context=9) == Work(
        num_bytes=80 + 6 + 8 + 4 * (200 + 10 * 8),
        flops=2 * 40 + 4 * (2 * 100 + 4 * 10 * 4),
    )
    assert decode(toy_weights, batch=3, context=9) == Work(
        num_bytes=80 + 6 + 3 * 8 + 4 * (200 + 3 * 10 * 8),
        flops=3 * (2 * 40 + 4 * (2 * 100 + 4 * 10 * 4)),
    )


def test_a_prefill_step_multiplies_every_token_and_the_last_ones_head(toy_weights: Weights) -> None:
    pairs = 5 * 6 // 2
    assert prefill(toy_weights, batch=1, tokens=5) == Work(
        num_bytes=80 + 6 + 5 * 8 + 4 * (200 + 5 * 8),
        flops=2 * 40 + 4 * (2 * 5 * 100 + 4 * pairs * 4),
    )
    assert work("prefill", toy_weights, 2, 5).flops == 2 * prefill(toy_weights, 1, 5).flops


def test_a_window_bounds_what_attention_sees(toy_weights: Weights) -> None:
    near = Weights(**(vars(toy_weights) | {"blocks": (Block(200, 100, window=3),) * 4}))
    assert decode(near, 1, 9).num_bytes == 80 + 6 + 8 + 4 * (200 + 4 * 8)
    assert prefill(near, 1, 5).flops == 80 + 4 * (2 * 5 * 100 + 4 * (1 + 2 + 3 + 3 + 3) * 4)
    blind = Weights(**(vars(toy_weights) | {"blocks": (Block(200, 100, attends=False),) * 4}))
    assert decode(blind, 1, 9) == Work(80 + 6 + 8 + 4 * 200, 80 + 4 * 200)


def test_experts_are_read_as_far_as_tokens_reach_them(toy_weights: Weights) -> None:
    sparse = Weights(
        **(vars(toy_weights) | {"blocks": (Block(200, 100, 800, 400),) * 4, "experts": 8, "experts_per_token": 2})
    )
    one = decode(sparse, 1, 9)
    assert one.num_bytes - decode(toy_weights, 1, 9).num_bytes == 4 * 800 // 4  # 2 of 8
    assert one.flops - decode(toy_weights, 1, 9).flops == 4 * 2 * 400 // 4
    two = decode(sparse, 2, 9)
    assert two.num_bytes - decode(toy_weights, 2, 9).num_bytes == 4 * round(800 * (1 - 0.75**2))


@pytest.mark.parametrize(("bandwidth", "rate"), [(1.0, 1.0), (100.0, 1.0), (1.0, 100.0), (1.0, 1.7)])
@pytest.mark.parametrize("batch", [1, 64])
def test_no_machine_passes_the_bound(bandwidth: float, rate: float, batch: int, toy_weights: Weights) -> None:
    dense, pruned = decode(toy_weights, batch, 50), decode(toy_weights.keep((0, 2, 3)), batch, 50)

    def seconds(weighed: Work) -> float:
        return max(weighed.num_bytes / bandwidth, weighed.flops / rate)

    assert 1 < seconds(dense) / seconds(pruned) <= bound(dense, pruned) + 1e-12 < 4 / 3


def test_the_bound_of_a_real_shape_at_a_quarter() -> None:
    weights = weights_of_config(open_shape("qwen2.5-0.5b-32k"))
    kept = kept_blocks(24, spread(24, 6))
    dense, pruned = decode(weights, 1, 96), decode(weights.keep(kept), 1, 96)
    block = 29_824_768 + 97 * 512
    rest = 32_000 * 896 * 2 + 2 * 896 + 2 * 896
    assert (dense.num_bytes, pruned.num_bytes) == (24 * block + rest, 18 * block + rest)
    assert bound(dense, pruned) == pytest.approx(1.30, abs=0.005)
    assert bound(prefill(weights, 1, 512), prefill(weights.keep(kept), 1, 512)) == pytest.approx(4 / 3, abs=0.001)


def test_no_mixture_of_steps_passes_the_most(toy_weights: Weights) -> None:
    """Three of four blocks: 4/3 of what the blocks cost, and less with the head beside it, whatever the step."""
    assert most(toy_weights, toy_weights.keep((0, 1, 3)), 1000) == pytest.approx(4 / 3)
    assert most(toy_weights, toy_weights, 1000) == 1
    window = Block(num_bytes=300, elements=100, window=8)
    experts = Block(num_bytes=200, elements=100, expert_bytes=1600, expert_elements=800)
    mixed = replace(
        toy_weights,
        blocks=(toy_weights.blocks[0], window, experts, toy_weights.blocks[0]),
        experts=8,
        experts_per_token=2,
    )
    for kept in ((0, 1, 2), (1, 2, 3), (0, 2, 3), (1, 2)):
        pruned, longest = mixed.keep(kept), 64
        weighed = most(mixed, pruned, longest)
        steps = [
            bound(work(phase, mixed, batch, tokens), work(phase, pruned, batch, tokens))
            for phase in ("prefill", "decode")
            for batch in (1, 2, 7, 64, 4096)
            for tokens in (1, 5, 8, 9, 33, longest)
        ]
        assert max(steps) <= weighed * (1 + 1e-3)  # bytes of experts are rounded
        assert weighed < 3
    # Where the only block that attends to everything goes, the context decides.
    assert most(mixed, mixed.keep((1, 2)), 8) < most(mixed, mixed.keep((1, 2)), 64)


def test_the_bound_of_tokens_per_second(point: Callable[..., PointRecord], toy_weights: Weights) -> None:
    dense, pruned = (
        MeasuredModel(point().arm, toy_weights.total_bytes, weights)
        for weights in (toy_weights, toy_weights.keep((0, 1, 3)))
    )
    load = point().load.model_copy(update={"input_tokens": 5, "output_tokens": 8, "concurrency": 3})
    phases = [
        bound(work(phase, toy_weights, batch, tokens), work(phase, toy_weights.keep((0, 1, 3)), batch, tokens))
        for phase, tokens in (("prefill", 5), ("decode", 9))
        for batch in (1, 3)
    ]
    assert 1 < bound_of(dense, pruned, load) == max(phases) < 4 / 3  # type: ignore[operator]
    opened = load.model_copy(update={"concurrency": None, "rate_per_s": 2.0})
    traced = load.model_copy(update={"trace": Trace(name="a.csv", sha256="0" * 64, requests=9)})
    assert [bound_of(dense, pruned, each) for each in (opened, traced)] == pytest.approx([4 / 3, 4 / 3])
    assert bound_of(dense, replace(pruned, weights=None), load) is None
