"""LoRA adapters on a pruned model: whose block numbers an adapter's tensors have, and the tensors renumbered.

An adapter of the dense model names dense blocks. On the pruned model each of its tensors must follow its block to the
new number, and the tensors of dropped blocks must go. An adapter that was trained on the pruned model is right as it
is. vLLM asks neither question: it puts block 5 on block 5.

What says whose numbers they are, the first that says something:

1. `"mi_prun_blocks": "dense"` or `"pruned"` in adapter_config.json, written by hand;
2. `base_model_name_or_path` there: the dense model, or this pruned one, by hub id, folder or number of blocks;
3. a block number that only the dense model has;
4. where both readings put every tensor on the same block, it does not matter.

Where nothing says it, the adapter is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mi_prun.architecture.architecture import (
    FAMILIES,
    Config,
    Family,
    block_of,
    extra_blocks,
    family_of,
    num_blocks,
    renamed,
)
from mi_prun.checkpoint.manifest import ConfigEntry, read_config_entry
from mi_prun.errors import UserError
from mi_prun.files import one_line_os_errors, read_json_object, write_text
from mi_prun.model.model_folder import read_config
from mi_prun.model.shard import read_shard

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
WHOSE = "mi_prun_blocks"  # the field of adapter_config.json: whose numbers the blocks have
PREFIX = "base_model.model."  # what peft puts before the name of a module
PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}  # by module name, and the field of all others
NUMBERED = re.compile(r"(?:\A|\.)(?:layers|h|blocks)\.\d+\.")
OTHER_TOWER = re.compile(r"vision|visual|audio|image")
PARAMETER = re.compile(r"\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b.*|weight|bias)\Z")
CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[0-9a-f]+\Z")


@dataclass(frozen=True)
class PrunedModel:
    """A pruned model that adapters are put on. folder: where its config lies. entry: `mi_prun` of that config."""

    folder: Path
    config: Config
    entry: ConfigEntry

    @property
    def num_dense_blocks(self) -> int:
        return len(self.entry.kept) + len(self.entry.dropped)


@dataclass(frozen=True)
class Renumbering:
    """The tensors of an adapter by their names in the dense model, with their names in the pruned one.

    None stands for a tensor of a dropped block. left_out: the dropped blocks that the adapter has tensors of.
    """

    names: Mapping[str, str | None]
    left_out: tuple[int, ...]

    def __str__(self) -> str:
        count = sum(new is None for new in self.names.values())
        return (
            f"block numbers of the dense model, renumbered; left out: {count} of {len(self.names)} tensors"
            + (f", those of the dropped blocks {list(self.left_out)}" if count else "")
            + " (0-based)"
        )


def open_pruned(folder: Path) -> PrunedModel | None:
    """Open a served model's folder. Return None where it is not a pruned one."""
    config = read_config(folder)
    entry = read_config_entry(config.get("mi_prun"), origin=str(folder))
    return None if entry is None else PrunedModel(folder, config, entry)


def renumbering(adapter: Path, model: PrunedModel) -> Renumbering | None:
    """Return how an adapter's folder is to be renumbered for `model`. None: it is right as it is.

    Only adapter_config.json and the names in the safetensors header are read.
    Raises UserError for an adapter whose numbers fit neither model, or may be either's.
    """
    fields = _read_fields(adapter)
    base = fields.get("base_model_name_or_path")
    named = _said(adapter, fields) or _by_base(adapter, base, model)
    if not (adapter / WEIGHTS_NAME).is_file():
        if named == "pruned":
            return None
        raise UserError(
            f"adapter {adapter} has no {WEIGHTS_NAME}, and on a pruned model its tensors' names must be read; save it "
            "as safetensors"
        )
    blocks = _blocks(adapter, model)
    numbers = {block for block in blocks.values() if block is not None}
    if not numbers:
        return None
    whose = named or _by_numbers(max(numbers), model)
    _check_numbers(adapter, max(numbers), whose, model)
    kept = model.entry.kept
    same = all(block < len(kept) and kept[block] == block for block in numbers)
    if whose == "pruned" or same:
        return None
    if whose is None:
        raise UserError(
            f"adapter {adapter}: its block numbers, up to {max(numbers)}, may be those of the pruned model "
            f"({len(kept)} blocks) or of the dense one ({model.num_dense_blocks}), and its base_model_name_or_path "
            f'{base!r} is neither of them here; say which by "{WHOSE}": "dense" or "pruned" in its {CONFIG_NAME}'
        )
    families = _families(model)
    names = {name: _renamed(name, families, model) for name in blocks}
    if not any(names.values()):
        raise UserError(
            f"adapter {adapter} changes only blocks {sorted(numbers)} of the dense model (0-based), and they are "
            "dropped; nothing of it would be left"
        )
    dropped = sorted(block for block in numbers if block < model.num_dense_blocks and block not in kept)
    return Renumbering(names, tuple(dropped))


def write_renumbered(adapter: Path, change: Renumbering, out: Path) -> None:
    """Write the renumbered adapter into the folder `out`: its config and its tensors, as vLLM reads them."""
    from mi_prun.recovery.adapter import write_tensors  # torch is not loaded for what needs none

    fields = _read_fields(adapter)
    fields.pop(WHOSE, None)
    for pattern, otherwise in PATTERNS.items():
        if fields.get(pattern):
            fields[pattern] = _exact_pattern(adapter, fields, pattern, otherwise, change)
    with safe_open(adapter / WEIGHTS_NAME, framework="pt") as file:
        tensors = {new: file.get_tensor(name) for name, new in change.names.items() if new is not None}
    with one_line_os_errors(out):
        write_tensors(out / WEIGHTS_NAME, tensors, out, {"format": "pt"})
    write_text(out / CONFIG_NAME, json.dumps(fields))


def check_for_dense(adapter: Path) -> None:
    """Refuse an adapter for a model that is not pruned where it was trained on a pruned folder, or is said to be."""
    fields = _read_fields(adapter)
    base = fields.get("base_model_name_or_path")
    if _said(adapter, fields) == "pruned" or (isinstance(base, str) and _entry_of_folder(base)):
        raise UserError(
            f"adapter {adapter} was trained on a pruned model ({base}); its block numbers are not those of a dense one"
        )


def _read_fields(adapter: Path) -> dict[str, Any]:
    return read_json_object(adapter / CONFIG_NAME, f"adapter {adapter} has no {CONFIG_NAME}; not an adapter's folder")


def _said(adapter: Path, fields: dict[str, Any]) -> str | None:
    value = fields.get(WHOSE)
    if value not in (None, "dense", "pruned"):
        raise UserError(f'adapter {adapter}: {WHOSE!r} in {CONFIG_NAME} must be "dense" or "pruned", got {value!r}')
    return value


def _by_base(adapter: Path, base: object, model: PrunedModel) -> str | None:
    """Return whose the numbers are by the name of the adapter's base model; None where it says nothing."""
    if not isinstance(base, str) or not base:
        return None
    if _is_folder(base):
        entry = _entry_of_folder(base)
        if entry is None:
            return "dense" if _num_blocks(Path(base)) == model.num_dense_blocks else None
        if (entry.kept, entry.dropped) == (model.entry.kept, model.entry.dropped):
            return "pruned"
        raise UserError(
            f"adapter {adapter} was trained on another pruned model, {base}: it keeps other blocks than {model.folder}"
        )
    name = base.partition("@")[0]
    if name in _cached_name(model.folder):
        return "pruned"
    dense = model.entry.base
    return "dense" if name in {dense.partition("@")[0], *_cached_name(Path(dense))} else None


def _by_numbers(highest: int, model: PrunedModel) -> str | None:
    """Return "dense" where the pruned model has no block of that number."""
    return "dense" if highest >= len(model.entry.kept) + extra_blocks(model.config) else None


def _check_numbers(adapter: Path, highest: int, whose: str | None, model: PrunedModel) -> None:
    """Refuse an adapter with a block that its model does not have."""
    if highest >= model.num_dense_blocks + extra_blocks(model.config):
        raise UserError(
            f"adapter {adapter} has block {highest} (0-based), and the dense model behind {model.folder} has "
            f"{model.num_dense_blocks} blocks; it was made for another model"
        )
    if whose == "pruned" and _by_numbers(highest, model) == "dense":
        raise UserError(
            f"adapter {adapter} is said to be the pruned model's, which has {len(model.entry.kept)} blocks, and has "
            f"block {highest} (0-based); correct {WHOSE!r} or 'base_model_name_or_path' in its {CONFIG_NAME}"
        )


def _is_folder(base: str) -> bool:
    try:
        return (Path(base) / "config.json").is_file()
    except OSError:  # a name that is too long, or a folder that may not be looked into
        return False


def _entry_of_folder(base: str) -> ConfigEntry | None:
    if not _is_folder(base):
        return None
    return read_config_entry(read_config(Path(base)).get("mi_prun"), origin=base)


def _num_blocks(folder: Path) -> int | None:
    try:
        return num_blocks(read_config(folder))
    except UserError:  # of a family that is not known here
        return None


def _cached_name(folder: Path) -> tuple[str, ...]:
    """Return the hub id of a folder in the hub's cache."""
    cached = CACHED.search(folder.as_posix())
    return (f"{cached['owner']}/{cached['name']}",) if cached else ()


def _families(model: PrunedModel) -> tuple[Family, ...]:
    """Return the families whose prefixes the names may have: an adapter may be of the text model alone."""
    family = family_of(model.config)
    return (family,) if family.text is None else (family, FAMILIES[family.text])


def _blocks(adapter: Path, model: PrunedModel) -> dict[str, int | None]:
    """Map each tensor of the adapter to its block; None where it belongs to none.

    Raises UserError for a name with a number that may be a block's, in a place that is not known.
    """
    families = _families(model)
    blocks: dict[str, int | None] = {}
    for name in read_shard(adapter / WEIGHTS_NAME).tensors:
        inner = name.removeprefix(PREFIX)
        blocks[name] = next((block for one in families if (block := block_of(inner, one)) is not None), None)
        numbered = NUMBERED.search(inner)
        if blocks[name] is None and numbered:
            if len(families) > 1 and OTHER_TOWER.search(inner[: numbered.start()]):
                continue
            raise UserError(
                f"adapter {adapter}: tensor {name!r} has a block's number, and blocks of a {families[0].model_type} "
                f"are named {families[0].block_prefix}.N; it was made for another model"
            )
    return blocks


def _renamed(name: str, families: tuple[Family, ...], model: PrunedModel) -> str | None:
    inner = name.removeprefix(PREFIX)
    family = next((one for one in families if block_of(inner, one) is not None), families[0])
    new = renamed(inner, family, model.entry.kept, num_blocks=model.num_dense_blocks)
    return None if new is None else name[: len(name) - len(inner)] + new


def _exact_pattern(
    adapter: Path, fields: dict[str, Any], pattern: str, otherwise: str, change: Renumbering
) -> dict[str, Any]:
    """Return a pattern that gives each module of the pruned model the value that the dense one's has.

    Patterns may be about block numbers, so they are resolved for each module by peft's rule, under its old name.
    """
    values: dict[str, Any] = {}
    for name, new in change.names.items():
        if new is not None:
            old = _module(name)
            try:
                value = next((v for key, v in fields[pattern].items() if re.match(rf"(.*\.)?({key})$", old)), None)
            except (AttributeError, re.error) as error:
                raise UserError(f"adapter {adapter}: {pattern!r} in {CONFIG_NAME} cannot be read: {error}") from error
            values[re.escape(_module(new))] = fields.get(otherwise) if value is None else value
    return values


def _module(name: str) -> str:
    """Return the name that peft's patterns are matched with. Fused experts go by the names of their parameters."""
    module = PARAMETER.sub("", name.removeprefix(PREFIX))
    if module.endswith(".experts.base_layer"):
        return module.removesuffix("base_layer") + "gate_up_proj"
    return module + ".down_proj" if module.endswith(".experts") else module
