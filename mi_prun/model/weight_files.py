"""The files that hold a model's weights: the one place where that is decided.

A folder may hold several sets of weights. The index decides; without an index it is `model.safetensors`. Everything
else is left alone: a single file beside an index, `consolidated.safetensors`, variants such as
`model.fp16.safetensors`, adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mi_prun.architecture.architecture import Config
from mi_prun.errors import UserError
from mi_prun.files import read_json_object
from mi_prun.model.shard import Shard, read_shard

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def open_shards(
    path: Path, config: Config, wanted: Sequence[str] | None = None
) -> tuple[tuple[Shard, ...], tuple[str, ...]]:
    """Return the checked shards of the files `wanted` (None: all), and the tensor names in the other files."""
    weight_map = read_weight_map(path)
    if weight_map is not None:
        files = sorted(set(weight_map.values())) if wanted is None else wanted
        absent = tuple(sorted(name for name, file in weight_map.items() if file not in files))
        return _indexed_shards(path, weight_map, files), absent
    single = path / SINGLE_NAME
    if single.is_file():
        if escapes(single, path):
            raise UserError(f"model {path}: {SINGLE_NAME} is a link that leads outside the folder; refused")
        return (read_shard(single),), ()
    if (entry := config.get("mi_prun")) and isinstance(entry, dict) and entry.get("weights") == "virtual":
        raise UserError(
            f"model {path} is a virtual checkpoint without weights of its own; name its dense model {entry.get('base')}"
        )
    pickles = sorted(file.name for pattern in (*PICKLE_PATTERNS, PICKLE_INDEX) for file in path.glob(pattern))
    if pickles:
        raise UserError(f"model {path} has only pickled weights ({pickles[0]}); convert them to safetensors first")
    stray = sorted(file.name for file in path.glob("*.safetensors"))
    if stray:
        raise UserError(f"model {path} has {stray[0]} but neither {SINGLE_NAME} nor {INDEX_NAME}; the index is missing")
    raise UserError(f"model {path} has no weights ({SINGLE_NAME} or {INDEX_NAME})")


def read_weight_map(path: Path) -> dict[str, str] | None:
    """Return tensor name -> file name from a folder's index; None if there is no index. No shard is opened."""
    index_path = path / INDEX_NAME
    if not index_path.is_file():
        return None
    weight_map = read_json_object(index_path, "").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_path} has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise UserError(f"{index_path}: tensor {name!r} lies in {file!r}, which is not a safetensors file")
        if PurePosixPath(file).name != file or file.startswith("."):
            raise UserError(f"{index_path}: {file!r} leads outside the model folder; refused")
    return weight_map


def _indexed_shards(path: Path, weight_map: dict[str, str], wanted: Sequence[str]) -> tuple[Shard, ...]:
    files = set(weight_map.values())
    # Only names of shards: others, such as `consolidated.safetensors`, are another set of weights.
    if stray := sorted(file.name for file in path.glob("model-*-of-*.safetensors") if file.name not in files):
        raise UserError(f"model {path}: shard {stray[0]} is not named in {INDEX_NAME}; the index is not whole")
    shards = []
    for file in wanted:
        shard_path = path / file
        if not shard_path.is_file():
            raise UserError(f"model {path}: shard {file} is named in the index but missing")
        if escapes(shard_path, path):
            raise UserError(f"model {path}: shard {file} is a link that leads outside the folder; refused")
        shard = read_shard(shard_path)
        named = {name for name, home in weight_map.items() if home == file}
        if missing := sorted(named - shard.tensors.keys()):
            raise UserError(f"model {path}: the index says {missing[0]!r} lies in {file}, but it does not")
        if extra := sorted(shard.tensors.keys() - named):
            raise UserError(f"model {path}: {file} holds {extra[0]!r}, which is not in the index")
        shards.append(shard)
    return tuple(shards)


def escapes(file: Path, folder: Path) -> bool:
    """Return True if `file` is a link that leads out of `folder`.

    In the hub's cache snapshots/ may link to blobs/ of the same repository, and those to blobs/ of the whole cache.
    """
    target, home = file.resolve(), folder.resolve()
    within = [home]
    if home.parent.name == "snapshots":
        repository = home.parent.parent
        within = [repository, repository.parent / "blobs"]
    return not any(target.is_relative_to(place) for place in within)
