"""Rules keep each kept block's kind: what the reduced config says of a block is what the dense one said of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_prun.architecture import config_rules as rules
from mi_prun.architecture.config_rules import DENSE, FULL, LINEAR, MOE, SLIDING
from mi_prun.errors import UserError

COUNT = 9
kept_blocks = st.sets(st.integers(0, COUNT - 1), min_size=1).map(sorted)


@given(kept=kept_blocks, step=st.integers(0, 4), only=st.sets(st.integers(0, COUNT - 1)).map(sorted))
def test_experts_stay_where_they_were(kept: list[int], step: int, only: list[int]) -> None:
    config: dict[str, Any] = {"decoder_sparse_step": step, "mlp_only_layers": only}
    before = rules.sparse_mlps(config, COUNT)
    after = rules.sparse_mlps(config | rules.sparse_step(config, kept, COUNT), len(kept))
    assert after == [before[block] for block in kept]


@given(kept=kept_blocks, first=st.integers(0, COUNT + 1))
def test_a_dense_prefix_is_counted_again(kept: list[int], first: int) -> None:
    config: dict[str, Any] = {"first_k_dense_replace": first}
    before = rules.dense_prefix(0)(config, COUNT)
    after = rules.dense_prefix(0)(config | rules.count_dense_prefix(0)(config, kept, COUNT), len(kept))
    assert after == [before[block] for block in kept]


@given(kept=kept_blocks, interval=st.integers(1, 5))
def test_rotary_embeddings_stay_where_they_were(kept: list[int], interval: int) -> None:
    config: dict[str, Any] = {"no_rope_layer_interval": interval}
    before = rules.rope_flags(config, COUNT)
    fields = rules.slice_rope_flags(config, kept, COUNT)
    assert fields["no_rope_layers"] == [before[block] for block in kept]


@given(kept=kept_blocks, first=st.integers(0, COUNT + 1))
def test_a_window_over_the_last_blocks_is_counted_again(kept: list[int], first: int) -> None:
    config: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": first}
    before = rules.window_suffix(config, COUNT)
    after = config | rules.window_layers(rules.window_suffix)(config, kept, COUNT)
    assert rules.window_suffix(after, len(kept)) == [before[block] for block in kept]


@given(kept=kept_blocks, pattern=st.text("ME*-", min_size=COUNT, max_size=COUNT))
def test_a_pattern_keeps_its_letters(kept: list[int], pattern: str) -> None:
    config: dict[str, Any] = {"hybrid_override_pattern": pattern}
    before = rules.nemotron_kinds(config, COUNT)
    after = config | rules.nemotron_pattern(config, kept, COUNT)
    assert rules.nemotron_count(after) == len(kept)
    assert rules.nemotron_kinds(after, len(kept)) == [before[block] for block in kept]


def test_every_so_many_blocks() -> None:
    assert rules.every(3, SLIDING)({}, 6) == [SLIDING, SLIDING, FULL] * 2
    assert rules.every("step", LINEAR, default=2)({}, 4) == [LINEAR, FULL] * 2
    assert rules.every("step", LINEAR, default=2)({"step": 4}, 4) == [LINEAR] * 3 + [FULL]
    assert rules.all_alike(MOE)({}, 2) == [MOE, MOE]
    with pytest.raises(UserError, match="'step' must be at least 1, got 0"):
        rules.every("step", LINEAR)({}, 4)


def test_parity_takes_pairs_of_neighbours_only() -> None:
    rules.parity({}, [0, 1, 4, 5], 6)
    with pytest.raises(UserError, match=r"block 2 \(sliding_attention\) would become block 1"):
        rules.parity({}, [0, 2], 6)


def test_a_sliding_block_must_stay() -> None:
    rules.keeps_sliding({}, [0, 3], 8)
    with pytest.raises(UserError, match="no sliding block would be kept"):
        rules.keeps_sliding({}, [3, 7], 8)


@pytest.mark.parametrize(
    ("rule", "config"),
    [
        (rules.count_dense_prefix(0), {"moe_layer_freq": 2}),
        (rules.llama4_experts, {"interleave_moe_layer_step": 2}),
        (rules.llama4_experts, {"moe_layers": [0, 2]}),
        (rules.inverse_layer_scale, {"scale_attn_by_inverse_layer_idx": True}),
        (rules.nemotron_pattern, {"intermediate_size": [8, 8]}),
        (rules.nemotron_pattern, {"hybrid_override_pattern": "M"}),
    ],
)
def test_what_the_index_decides_is_refused(rule: Any, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="config field"):
        rule(config, [0], 3)


def test_experts_in_every_block_are_renumbered() -> None:
    assert rules.llama4_experts({"moe_layers": [0, 1, 2]}, [0, 2], 3) == {"moe_layers": [0, 1]}
    assert rules.llama4_experts({}, [0, 2], 3) == {}
    assert rules.sparse_mlps({"mlp_only_layers": [1]}, 3) == [MOE, DENSE, MOE]
