"""Where the blocks of a model live, and its config and tensor names without some of them.

`families.FAMILIES` is the one table. The functions here read it: `family_of` finds a config's family, has one that no
row names proved (`unlisted`), or refuses it. `reduce_config` makes the config of the kept blocks, `renamed` gives a
tensor's name in the pruned model. The checkpoint writer and the vLLM loader both call them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mi_prun.architecture.config_rules import FULL, VLLM_ONLY
from mi_prun.architecture.families import FAMILIES, REFUSED
from mi_prun.architecture.family import Config, Family, block_list
from mi_prun.architecture.field_guard import check_fields
from mi_prun.architecture.quantization import reduce_quantization
from mi_prun.architecture.unlisted import assumed_family, prove
from mi_prun.errors import UserError

if TYPE_CHECKING:
    from mi_prun.architecture.proof import Proof

__all__ = [
    "FAMILIES", "Config", "Family", "block_kinds", "block_of", "check_class", "check_config", "check_kept",
    "check_named", "extra_blocks", "family_of", "num_blocks", "proof_of", "reduce_config", "renamed",
]  # fmt: skip

MAX_BLOCKS = 10_000  # a wrong config must not exhaust the memory


def family_of(config: Config) -> Family:
    """Return the family of a config: the one that a rule names, else one that is proved here and now.

    Raises UserError for one that is not supported.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in REFUSED:
        raise UserError(f"model_type {model_type!r}: {REFUSED[model_type]}; not supported")
    family = _named(model_type) or prove(config)[0]
    check_class(config, family)
    return family


def check_named(config: Config) -> None:
    """Refuse a config whose family no rule names."""
    model_type = config.get("model_type")
    if _named(model_type) is None and model_type not in REFUSED:
        raise UserError(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    family_of(config)


def proof_of(config: Config, dropped: Sequence[int] = ()) -> Proof | None:
    """Return the proof of a family that no rule names; None where a rule does.

    dropped: one more set of blocks that the proof is to drop.
    Raises UserError where the proof fails.
    """
    return None if _named(config.get("model_type")) else prove(config, dropped)[1]


def _named(model_type: object) -> Family | None:
    return (FAMILIES.get(model_type) if isinstance(model_type, str) else None) or assumed_family(model_type)


def check_class(config: Config, family: Family) -> None:
    """Refuse a config that names another class than the family's, or code of its own."""
    architectures = config.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        raise UserError(
            f"architectures {architectures!r} of a {family.model_type} config is not supported; only "
            f"{family.architecture} is"
        )
    _check_remote_code(config, family)


def _check_remote_code(config: Config, family: Family) -> None:
    """Refuse custom code, as it is not copied. Code of a class that transformers has by now is not needed."""
    auto_map = config.get("auto_map")
    if not auto_map:
        return
    model = auto_map.get("AutoModelForCausalLM") if isinstance(auto_map, dict) else None
    if not isinstance(model, str) or model.rpartition(".")[2] != family.architecture:
        raise UserError(
            f"config field 'auto_map' names remote code ({model or auto_map!r}) that is not transformers' own "
            f"{family.architecture}; not supported"
        )


def _text(config: Config, family: Family) -> tuple[Config, Family]:
    """Return the config and the family that describe the blocks: those of the text model where it is nested."""
    if family.text is None:
        return config, family
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"config field 'text_config' of a {family.model_type} config must be an object, got {text!r}")
    if text.get("model_type", family.text) != family.text:
        raise UserError(f"text_config has model_type {text.get('model_type')!r}; only {family.text} is supported there")
    return text, FAMILIES[family.text]


def num_blocks(config: Config) -> int:
    """Return L, the number of blocks."""
    text, family = _text(config, family_of(config))
    field = next((name for name in family.count_fields if text.get(name) is not None), None)
    count = text[field] if field else family.count(text) if family.count else None
    named = field or next(iter((*family.count_fields, *family.slice_fields)))
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"config field {named!r} must be a whole number of at least 1, got {count!r}")
    if count > MAX_BLOCKS:
        raise UserError(f"config field {named!r} must be at most {MAX_BLOCKS}, got {count}")
    return count


def block_kinds(config: Config) -> list[str]:
    """Return the kind of each block, for people to read: e.g. `sliding_attention`, or `linear_attention+moe`."""
    count = num_blocks(config)
    text, family = _text(config, family_of(config))
    attention = [str(kind) for kind in _attention_kinds(text, family, count) or [FULL] * count]
    if family.mlp_kinds is None:
        return attention
    mlp = family.mlp_kinds(text, count)
    if len(set(mlp)) == 1:
        return attention
    return mlp if len(set(attention)) == 1 else [f"{one}+{other}" for one, other in zip(attention, mlp, strict=True)]


def _attention_kinds(text: Config, family: Family, count: int) -> list[str] | None:
    for field in ("layer_types", "layers_block_type"):
        if field in family.slice_fields and text.get(field) is not None:
            return block_list(text, field, count)
    return family.attention_kinds(text, count) if family.attention_kinds else None


def extra_blocks(config: Config) -> int:
    """Return how many blocks are stored after the last one of the stack (multi-token prediction)."""
    text, family = _text(config, family_of(config))
    return family.extra_blocks(text) if family.extra_blocks else 0


def reduce_config(
    config: Config, kept: Sequence[int], *, assume_uniform: bool = False, for_vllm: bool = True
) -> Config:
    """Return the config of the model that has only the blocks `kept` (ascending, 0-based).

    The dense config is not changed. assume_uniform: let unknown fields pass that may be per block, on the user's word.
    for_vllm: refuse what vLLM alone would take for another kind of block; without it the config is for transformers.
    Raises UserError for an unknown field that is, or may be, per block: unchanged it would shift the kinds of blocks.
    """
    family = family_of(config)
    count = num_blocks(config)
    check_kept(kept, count)
    reduced = {field: value for field, value in config.items() if field != "auto_map"}
    text, text_family = _text(config, family)
    if family.text is not None and text.get("quantization_config") is not None:
        raise UserError("text_config has a quantization_config of its own; not supported: prune first, then quantise")
    if not assume_uniform and len(kept) < count:
        check_config(config)
    fields = _reduce_text(text, text_family, kept, count, for_vllm=for_vllm)
    if family.text is None:
        reduced = {field: value for field, value in fields.items() if field != "auto_map"}
    else:
        reduced["text_config"] = fields
    if reduced.get("quantization_config") is not None:
        reduced["quantization_config"] = reduce_quantization(
            reduced["quantization_config"],
            lambda number: _new_number(int(number), kept, count),
            lambda name: _renamed_module(name, family, kept, count),
            tower=None if family.text is None else "language_model",
        )
    return reduced


def _new_number(block: int, kept: Sequence[int], count: int | None) -> str | None:
    """Return a block's number in the pruned model, None where it is dropped. count: see `num_blocks` of `renamed`."""
    if count is not None and block >= count:
        return str(len(kept) + block - count)
    return str(kept.index(block)) if block in kept else None


def _renamed_module(name: str, family: Family, kept: Sequence[int], count: int) -> str | None:
    """Rename like `renamed`, also names that leave out what stands before the blocks: `layers.7.mlp`.

    >>> _renamed_module("layers.7.mlp", FAMILIES["llama"], (0, 7), 8)
    'layers.1.mlp'
    """
    whole = family.block_prefix
    for start in (0, *(place + 1 for place, character in enumerate(whole) if character == ".")):
        left_out = whole[:start]
        if block_of(left_out + name, family) is not None:
            if family.text is not None and "." not in whole[start:]:
                raise UserError(f"quantization_config names {name!r} without its tower; not supported")
            new = renamed(left_out + name, family, kept, num_blocks=count)
            return None if new is None else new[len(left_out) :]
    return renamed(name, family, kept, num_blocks=count)


def check_config(config: Config) -> None:
    """Raise UserError for a field that may be per block and is not known, whichever blocks would be dropped."""
    family, count = family_of(config), num_blocks(config)
    text, text_family = _text(config, family)
    check_fields(text, text_family, count)
    if family.text is not None:
        check_fields(config, family, count)


def check_reducible(config: Config, sets: Sequence[Sequence[int]], instead: Sequence[str] = ()) -> None:
    """Raise UserError where none of the block sets can be dropped; one of them is to be chosen.

    instead: the methods that drop runs, given where the one asked for chooses block by block. Such a method does not
    look for the few sets that may go, so it is refused unless at least half of the single blocks may.
    """
    count, refused = num_blocks(config), []
    for dropped in sets:
        try:
            reduce_config(config, [kept for kept in range(count) if kept not in dropped], assume_uniform=True)
        except UserError as error:
            refused.append(error)
    if refused and len(refused) == len(sets):
        raise refused[0]
    if instead and len(refused) > len(sets) / 2:
        raise UserError(
            f"{refused[0]}. Methods that choose block by block do not look for such sets: name the blocks (`mi-prun "
            f"plan --drop`), or take {', '.join(instead)}"
        )


def _reduce_text(text: Config, family: Family, kept: Sequence[int], count: int, *, for_vllm: bool) -> Config:
    reduced = dict(text)
    reduced.update({field: len(kept) for field in family.count_fields if text.get(field) is not None})
    for field in family.slice_fields:
        if (values := block_list(text, field, count)) is not None:
            reduced[field] = [values[block] for block in kept]
    if len(kept) == count:
        return reduced
    if family.attention_kinds and not any(text.get(field) is not None for field in family.slice_fields):
        kinds = family.attention_kinds(text, count)
        reduced[family.slice_fields[0]] = [kinds[block] for block in kept]
    for rule in family.rules:
        if rule in VLLM_ONLY and not for_vllm:
            continue
        reduced.update(rule(text, kept, count))
    for field in family.removed_fields:
        reduced.pop(field, None)
    return reduced


def check_kept(kept: Sequence[int], count: int) -> None:
    """Raise UserError for a list of kept blocks that is empty, not ascending, or out of range."""
    if not kept:
        raise UserError("no block would be kept")
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise UserError(f"kept blocks {list(kept)} must be ascending, distinct and within 0..{count - 1}")


def block_of(name: str, family: Family) -> int | None:
    """Return the block that a tensor belongs to; None where it belongs to none."""
    parts = _split(name, family)
    return parts[1] if parts else None


def renamed(name: str, family: Family, kept: Sequence[int], *, num_blocks: int | None = None) -> str | None:
    """Return a tensor's name in the pruned model; None where its block is dropped.

    num_blocks: the dense model's. With it, blocks stored after the last one (multi-token prediction) stay behind the
    last kept one; without it they are dropped.

    >>> renamed("model.layers.7.mlp.up_proj.weight", FAMILIES["llama"], (0, 7))
    'model.layers.1.mlp.up_proj.weight'
    """
    parts = _split(name, family)
    if parts is None:
        return name
    prefix, block, rest = parts
    number = _new_number(block, kept, num_blocks)
    return None if number is None else f"{prefix}.{number}{rest}"


def _split(name: str, family: Family) -> tuple[str, int, str] | None:
    """Split `model.layers.7.mlp` into (`model.layers`, 7, `.mlp`); the prefix must be the start of the name."""
    for prefix in family.prefixes:
        if match := re.match(rf"{re.escape(prefix)}\.(0|[1-9][0-9]{{0,5}})(?=\.|\Z)", name):
            return prefix, int(match[1]), name[match.end() :]
    return None
