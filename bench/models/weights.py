"""Count what a step of a model reads and multiplies, block by block, by the headers of its files or by its config
alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mi_prun.architecture.architecture import Config, block_kinds, block_of, family_of, num_blocks
from mi_prun.architecture.config_rules import DENSE, MOE
from mi_prun.errors import UserError
from mi_prun.model.model_folder import ModelFolder

BYTES_OF_DTYPE = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
PACKED = (".qweight", ".weight_packed", "_blocks")
BESIDE_PACKED = (".qzeros", ".scales", ".g_idx", "_scale", "_scale_inv", "_scales", "_zero_point", "_shape")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Tensor:
    """A tensor by its name, shape and bytes."""

    name: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Block:
    """What a block of a model holds.

    num_bytes, elements: what every token uses; elements are of matrices. expert_bytes, expert_elements: of all routed
    experts together. window: tokens that attention looks back on, at most; None: all. attends: False for a block
    without a KV cache.
    """

    num_bytes: int
    elements: int
    expert_bytes: int = 0
    expert_elements: int = 0
    window: int | None = None
    attends: bool = True


@dataclass(frozen=True)
class Weights:
    """What the weights of a model come to.

    head: the matrix of the logits, which is the embedding where the two are tied; a step reads it whole. row_bytes: of
    one token's embedding. rest_bytes: norms outside the blocks. kv_bytes: of one token in one block. attention_width:
    query heads x head size, of one block. experts, experts_per_token: 0 where no block has any.
    """

    blocks: tuple[Block, ...]
    head_bytes: int
    head_elements: int
    row_bytes: int
    rest_bytes: int
    kv_bytes: int
    attention_width: int
    total_bytes: int
    experts: int = 0
    experts_per_token: int = 0

    def keep(self, kept: Sequence[int]) -> Weights:
        """Return the weights of the model that has only the blocks `kept`."""
        blocks = tuple(self.blocks[block] for block in kept)
        gone = sum(b.num_bytes + b.expert_bytes for b in self.blocks) - sum(
            b.num_bytes + b.expert_bytes for b in blocks
        )
        return Weights(**(vars(self) | {"blocks": blocks, "total_bytes": self.total_bytes - gone}))


def weights_of(folder: ModelFolder) -> Weights:
    """Weigh a model by the headers of its files. Raises UserError for a family whose steps are not known."""
    tensors = (Tensor(i.name, i.shape, i.num_bytes) for shard in folder.shards for i in shard.tensors.values())
    return weigh(folder.config, tensors)


def weights_of_config(config: Config) -> Weights:
    """Weigh the tensors that transformers makes for a config. Nothing is allocated. Raises UserError where it makes
    none.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from mi_prun.model.pretrained import library_errors

    family_of(config)
    fields = {name: value for name, value in config.items() if name != "model_type"}
    refused = library_errors(f"transformers makes no model of this {config['model_type']} config")
    with refused, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields))
    size = element_bytes(config)
    named = ((name, tuple(parameter.shape)) for name, parameter in model.named_parameters())
    return weigh(config, (Tensor(name, shape, math.prod(shape) * size) for name, shape in named))


def element_bytes(config: Config) -> int:
    """Return the bytes of an element in the model's own dtype; bfloat16 where the config does not say."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return BYTES_OF_DTYPE.get(name, 2)


def weigh(config: Config, tensors: Iterable[Tensor]) -> Weights:
    """Weigh tensors by a model's config. Raises UserError for a config or tensors that no step is known of."""
    family, count = family_of(config), num_blocks(config)
    text = config.get("text_config", config) if family.text else config
    inside: list[list[Tensor]] = [[] for _ in range(count)]
    outside: list[Tensor] = []
    total = 0
    for tensor in tensors:
        total += tensor.num_bytes
        block = block_of(tensor.name, family)
        if block is None:
            outside.append(tensor)
        elif block < count:
            inside[block].append(tensor)
    head, row_bytes = _head(text, outside)
    experts = next((int(text[name]) for name in EXPERT_COUNTS if text.get(name)), 0)
    return Weights(
        blocks=tuple(_block(config, text, own, kind) for own, kind in zip(inside, block_kinds(config), strict=True)),
        head_bytes=head.num_bytes,
        head_elements=head.elements,
        row_bytes=row_bytes,
        rest_bytes=sum(tensor.num_bytes for tensor in outside if len(tensor.shape) == 1),
        kv_bytes=_kv_elements(text) * element_bytes(text if text.get("dtype") or text.get("torch_dtype") else config),
        attention_width=_heads(text) * _head_size(text),
        total_bytes=total,
        experts=experts,
        experts_per_token=int(text.get("num_experts_per_tok") or 0) if experts else 0,
    )


def _block(config: Config, text: Config, tensors: Sequence[Tensor], kind: str) -> Block:
    experts = [tensor for tensor in tensors if ".experts." in tensor.name]
    shared = [tensor for tensor in tensors if ".experts." not in tensor.name]
    window = text.get("sliding_window")
    alone = family_of(config).mlp_kinds is None and kind in (DENSE, MOE)  # an MLP is all that this block is
    return Block(
        num_bytes=sum(tensor.num_bytes for tensor in shared),
        elements=sum(_multiplied(tensor, config) for tensor in shared),
        expert_bytes=sum(tensor.num_bytes for tensor in experts),
        expert_elements=sum(_multiplied(tensor, config) for tensor in experts),
        window=window if "sliding" in kind and isinstance(window, int) else None,
        attends="linear" not in kind and "mamba" not in kind and not alone,
    )


def _multiplied(tensor: Tensor, config: Config) -> int:
    """Count the elements of a matrix that tokens are multiplied with.

    Packed matrices hold several elements in an integer. Scales and zero points belong to them, and count for none.
    """
    if len(tensor.shape) < 2 or tensor.name.endswith(BESIDE_PACKED):
        return 0
    return tensor.num_bytes * 8 // _packed_bits(config) if tensor.name.endswith(PACKED) else tensor.elements


def _packed_bits(config: Config) -> int:
    """Return the bits of a packed element: `bits` of AWQ and GPTQ, `num_bits` of compressed-tensors, else 4."""
    quantization = config.get("quantization_config") or {}
    groups = quantization.get("config_groups") or {}
    inner: dict[str, Any] = next((group["weights"] for group in groups.values() if group.get("weights")), {})
    bits = quantization.get("bits") or quantization.get("w_bit") or inner.get("num_bits") or 4
    return bits if isinstance(bits, int) and 1 <= bits <= 8 else 4


def _head(text: Config, outside: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Return the matrix of the logits, and the bytes of a row of the embedding. Both have a row for each token."""
    tables = [tensor for tensor in outside if len(tensor.shape) == 2 and text.get("vocab_size") in tensor.shape]
    if not tables:
        raise UserError("no tensor outside the blocks has a row for each token of the vocabulary")
    named = [tensor for tensor in tables if "head" in tensor.name or "embed_out" in tensor.name]
    tied = text.get("tie_word_embeddings", False) or not named
    embedding = next((tensor for tensor in tables if tensor not in named), tables[0])
    return (embedding if tied else named[0]), embedding.num_bytes // int(text["vocab_size"])


def _heads(text: Config) -> int:
    return int(_first(text, "num_attention_heads", "n_head"))


def _head_size(text: Config) -> int:
    return int(text.get("head_dim") or _first(text, "hidden_size", "n_embd") // _heads(text))


def _kv_elements(text: Config) -> int:
    """Count the elements that a token keeps in one block: keys and values, or the latent of multi-head latent
    attention.
    """
    if latent := text.get("kv_lora_rank"):
        return int(latent) + int(text.get("qk_rope_head_dim") or 0)
    return 2 * int(text.get("num_key_value_heads") or _heads(text)) * _head_size(text)


def _first(text: Config, *names: str) -> Any:
    value = next((text[name] for name in names if isinstance(text.get(name), int)), None)
    if value is None:
        raise UserError(f"config field {names[0]!r} is missing; no bound can be given")
    return value
