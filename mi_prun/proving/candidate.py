"""What a family that no rule names would be: read off transformers' own class, and no more than a guess yet."""

from __future__ import annotations

from typing import Any

from torch import nn

from mi_prun.architecture.architecture import MAX_BLOCKS, check_class
from mi_prun.architecture.family import Config, Family
from mi_prun.errors import UserError
from mi_prun.model.pretrained import library_errors, pretrained_config

KINDS = "layer_types"
COUNT = "num_hidden_layers"


def unsupported(model_type: object, reason: str) -> UserError:
    """Return the error that refuses a family that no rule names."""
    return UserError(f"model_type {model_type!r} is not supported: no rule names it, and {reason}")


def class_of(config: Config) -> Any:
    """Return transformers' class of the causal language model. Raises UserError where it has none of its own."""
    import transformers
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model_type = config.get("model_type")
    of_transformers = None
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        mapping = AutoModelForCausalLM._model_mapping
        with library_errors(f"model_type {model_type!r} cannot be read by transformers"):
            of_transformers = mapping.get(CONFIG_MAPPING[model_type], None)
    if not isinstance(of_transformers, type):
        raise unsupported(
            model_type, f"transformers {transformers.__version__} has no causal language model of that type"
        )
    return of_transformers


def candidate(config: Config) -> Family:
    """Return the family that a config seems to be of. Raises UserError where its class has no one stack of blocks."""
    model_class = class_of(config)
    model_type = str(config["model_type"])
    try:
        check_class(config, Family(model_type, model_class.__name__))
    except UserError as error:
        raise unsupported(model_type, str(error)) from error
    for tower in ("text_config", "vision_config", "audio_config"):
        if config.get(tower):
            raise unsupported(model_type, f"it has a {tower!r}; only models of text alone are proved")
    known = known_config(config)
    return Family(
        model_type,
        model_class.__name__,
        count_fields=_count_fields(config, known),
        attention_kinds=_derived_kinds if isinstance(getattr(known, KINDS, None), list) else None,
    )


def with_blocks(family: Family, model: nn.Module, count: int) -> Family:
    """Return the family with the place of its blocks: the one list of `count` modules that lies in no other list."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = [
        name
        for name, module in lists.items()
        if len(module) == count and not any(name.startswith(f"{other}.") for other in lists)
    ]
    if len(found) != 1:
        raise unsupported(
            family.model_type, f"{family.architecture} has {len(found)} lists of {count} modules, not one"
        )
    prefix = found[0]
    base = f"{getattr(model, 'base_model_prefix', '')}."
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    positions = any(
        isinstance(module, nn.Embedding) and module is not embedding and not name.startswith(f"{prefix}.")
        for name, module in model.named_modules()
    )
    fields = vars(family) | {
        "block_prefix": prefix,
        # Checkpoints of the base model alone leave out its name.
        "tensor_prefixes": (prefix.removeprefix(base),) if prefix.startswith(base) and base != "." else (),
        "learned_positions": positions,
    }
    return Family(**fields)


def known_config(config: Config) -> Any:
    """Return the config as transformers' own object."""
    return pretrained_config(config, f"a {config.get('model_type')} config")


def _count_fields(config: Config, known: Any) -> tuple[str, ...]:
    """Return the fields of the number of blocks. Raises UserError where they do not say what transformers takes."""
    count = getattr(known, COUNT, None)
    names = dict.fromkeys((known.attribute_map.get(COUNT, COUNT), COUNT))
    fields = tuple(name for name in names if config.get(name) is not None)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_BLOCKS:
        raise UserError(f"config field {COUNT!r} must be a whole number from 1 to {MAX_BLOCKS}, got {count!r}")
    if not fields or any(config[name] != count for name in fields):
        said = {name: config[name] for name in fields}
        raise UserError(f"config field {next(iter(names))!r} must say how many blocks there are, got {said or None}")
    return fields


def _derived_kinds(config: Config, count: int) -> list[str]:
    """Return the kinds that transformers derives where the config does not list them."""
    kinds = list(getattr(known_config(config), KINDS))
    if len(kinds) != count:
        raise UserError(f"transformers derives {len(kinds)} entries of {KINDS!r} for {count} blocks; not supported")
    return kinds
