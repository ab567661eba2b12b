"""What a model's tensors come to, worked out on paper: real shapes, the bundled model, packed ones and odd ones."""

from __future__ import annotations

from typing import Any

import pytest

from bench.models.shape import open_shape
from bench.models.weights import (
    Block,
    Tensor,
    Weights,
    _multiplied,
    element_bytes,
    weigh,
    weights_of,
    weights_of_config,
)
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model

# Two blocks of a Llama: states of 8, two query heads and one KV head of 4, ten tokens.
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 10,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
TABLE = Tensor("model.embed_tokens.weight", (10, 8), 320)
HEAD = Tensor("lm_head.weight", (10, 8), 321)
UP = Tensor("model.layers.0.mlp.up_proj.weight", (12, 8), 384)
NORM = Tensor("model.layers.1.input_layernorm.weight", (8,), 32)
LAST = Tensor("model.norm.weight", (8,), 33)


@pytest.mark.parametrize(
    ("shape", "block", "head", "total", "kv_bytes", "tied"),
    [
        # q and o 4096x4096, k and v 4096x1024, three of 4096x14336, two norms
        ("llama-3.1-8b", 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336, 128_256 * 4096, 8_030_261_248, 4096, 0),
        # with biases of q, k and v, which are no matrices
        ("qwen2.5-0.5b", 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864, 151_936 * 896, 494_032_768, 512, 1),
        # q and o of 16 heads x 128, wider than the state
        ("qwen3-0.6b", 2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072, 151_936 * 1024, 596_049_920, 4096, 1),
        ("llama-3.2-1b", 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192, 128_256 * 2048, 1_235_814_400, 2048, 1),
    ],
)
def test_shapes_weigh_what_their_cards_say(
    shape: str, block: int, head: int, total: int, kv_bytes: int, tied: int
) -> None:
    config = open_shape(shape)
    weights = weights_of_config(config)
    assert {weighed.elements for weighed in weights.blocks} == {block}
    assert weights.head_elements == head
    assert weights.kv_bytes == kv_bytes
    assert weights.total_bytes == 2 * total
    assert bool(config["tie_word_embeddings"]) == bool(tied)
    assert weights.row_bytes == 2 * config["hidden_size"]


def test_the_bundled_model_is_weighed_by_its_headers(reference: Any) -> None:

    folder = open_model(reference)
    weights = weights_of(folder)
    assert weights.total_bytes == folder.weight_bytes == weights_of_config(folder.config).total_bytes
    assert weights.head_bytes == 2 * 4096 * 256
    assert weights.kv_bytes == 2 * 2 * 64 * 2
    assert weights.keep(range(9)).total_bytes == weights.total_bytes - 3 * weights.blocks[0].num_bytes


@pytest.mark.parametrize(
    ("quantization", "packed", "beside", "values"),
    [
        ({"quant_method": "awq", "bits": 4}, "qweight", ("qzeros", "scales"), 8),
        ({"quant_method": "gptq", "bits": 4}, "qweight", ("qzeros", "scales", "g_idx"), 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}, "targets": ["Linear"]}},
            },
            "weight_packed",
            ("weight_scale", "weight_shape"),
            2,  # NVFP4: two in a byte
        ),
    ],
)
def test_packed_matrices_multiply_as_many_elements_as_plain_ones(
    quantization: dict[str, Any], packed: str, beside: tuple[str, ...], values: int
) -> None:
    """Several of four bits in an integer; their bytes are what is read."""
    from bench.models.shape import open_shape
    from bench.models.weights import Tensor, weigh

    config = open_shape("qwen3-0.6b") | {"quantization_config": quantization}
    plain = weights_of_config(open_shape("qwen3-0.6b"))
    count = config["num_hidden_layers"]
    elements = plain.blocks[0].elements
    table = Tensor("model.embed_tokens.weight", (config["vocab_size"], config["hidden_size"]), 1_000)
    tensors = [table]
    for block in range(count):
        name = f"model.layers.{block}.mlp.up_proj"
        tensors.append(Tensor(f"{name}.{packed}", (8, elements // 8 // values), elements // 2))
        tensors += [Tensor(f"{name}.{other}", (2, 3), 24) for other in beside]
    weighed = weigh(config, tensors)
    assert {block.elements for block in weighed.blocks} == {elements}
    assert {block.num_bytes for block in weighed.blocks} == {elements // 2 + 24 * len(beside)}


def test_only_attention_has_a_cache_and_packed_experts_multiply_their_elements() -> None:
    pattern = "M-M*-M-"
    config = {"model_type": "nemotron_h", "hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)}
    small = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64, "num_attention_heads": 4, "head_dim": 16}
    mamba = {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1}
    weights = weights_of_config({**config, **small, **mamba, "num_key_value_heads": 2})
    assert [block.attends for block in weights.blocks] == [letter == "*" for letter in pattern]
    experts = [
        Tensor("model.layers.0.mlp.experts.gate_up_proj_blocks", (32, 5760, 90, 16), 32 * 5760 * 90 * 16),
        Tensor("model.layers.0.mlp.experts.gate_up_proj_scales", (32, 5760, 90), 32 * 5760 * 90),
    ]
    assert [_multiplied(tensor, {"quantization_config": {"quant_method": "mxfp4"}}) for tensor in experts] == [
        32 * 5760 * 2880,
        0,
    ]


def test_tensors_are_counted_where_they_are() -> None:
    weights = weigh(CONFIG, [TABLE, HEAD, UP, NORM, LAST])
    assert weights.blocks == (Block(num_bytes=384, elements=96), Block(num_bytes=32, elements=0))  # a norm is no matrix
    assert (weights.head_bytes, weights.head_elements, weights.row_bytes) == (321, 80, 32)
    assert (weights.rest_bytes, weights.total_bytes) == (33, 320 + 321 + 384 + 32 + 33)
    assert (weights.kv_bytes, weights.attention_width) == (2 * 1 * 4 * 4, 2 * 4)
    assert (weights.experts, weights.experts_per_token) == (0, 0)


def test_a_tied_head_is_the_embedding_whether_or_not_a_head_is_in_the_files() -> None:
    tied = CONFIG | {"tie_word_embeddings": True}
    assert weigh(tied, [TABLE, HEAD]).head_bytes == 320
    assert weigh(CONFIG, [TABLE]).head_bytes == 320
    assert weigh(CONFIG, [HEAD, TABLE]).head_bytes == 321  # the order of the files says nothing


def test_what_a_draft_head_brings_is_in_no_block() -> None:
    """Blocks beyond the config's count: they weigh, but no step of the model reads them."""
    beyond = Tensor("model.layers.2.mlp.up_proj.weight", (12, 8), 384)
    plain, more = weigh(CONFIG, [TABLE, HEAD, UP]), weigh(CONFIG, [TABLE, HEAD, UP, beyond])
    assert more.blocks == plain.blocks
    assert more.total_bytes == plain.total_bytes + 384


def test_kept_blocks_take_the_bytes_of_the_others_away() -> None:
    weights = Weights(
        blocks=(Block(10, 5), Block(20, 10, expert_bytes=100, expert_elements=50), Block(40, 20)),
        head_bytes=7,
        head_elements=3,
        row_bytes=1,
        rest_bytes=2,
        kv_bytes=4,
        attention_width=4,
        total_bytes=179,
        experts=4,
        experts_per_token=2,
    )
    assert weights.keep((0, 1, 2)) == weights
    kept = weights.keep((0, 2))
    assert (kept.blocks, kept.total_bytes) == ((weights.blocks[0], weights.blocks[2]), 59)
    assert kept.keep((1,)).total_bytes == 49
    assert (kept.head_bytes, kept.experts) == (7, 4)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"dtype": "float32"}, 4),
        ({"torch_dtype": "torch.float16"}, 2),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, 2),  # the newer field counts
        ({}, 2),
        ({"dtype": "auto"}, 2),
    ],
)
def test_the_bytes_of_an_element(fields: dict[str, Any], size: int) -> None:
    assert element_bytes(fields) == size


@pytest.mark.parametrize(
    ("fields", "elements"),
    [
        ({"num_key_value_heads": None}, 2 * 2 * 4),  # as many as query heads
        ({"head_dim": 16}, 2 * 1 * 16),
        ({"kv_lora_rank": 5, "qk_rope_head_dim": 3}, 8),  # the latent, once, for keys and values
    ],
)
def test_what_a_token_keeps_in_a_block(fields: dict[str, Any], elements: int) -> None:
    assert weigh(CONFIG | fields, [TABLE]).kv_bytes == 4 * elements


def test_what_no_step_is_known_of_is_refused() -> None:
    with pytest.raises(UserError, match="no tensor outside the blocks has a row for each token"):
        weigh(CONFIG, [UP, NORM, LAST])
    without = {name: value for name, value in CONFIG.items() if name != "num_attention_heads"}
    with pytest.raises(UserError, match="config field 'num_attention_heads' is missing; no bound can be given"):
        weigh(without, [TABLE])
    with pytest.raises(UserError, match="model_type 'no-such-family' is not supported"):
        weigh(CONFIG | {"model_type": "no-such-family"}, [TABLE])


@pytest.mark.parametrize(
    ("quantization", "elements"),
    [({"bits": 8}, 32), ({"w_bit": 2}, 128), ({}, 64), ({"bits": 0}, 64), ({"bits": "four"}, 64)],
)
def test_the_bits_of_a_packed_element(quantization: dict[str, Any], elements: int) -> None:
    """32 bytes; of four bits where the config says nothing that can be."""
    tensor = Tensor("model.layers.0.mlp.up_proj.qweight", (1, 8), 32)
    assert _multiplied(tensor, {"quantization_config": quantization}) == elements
