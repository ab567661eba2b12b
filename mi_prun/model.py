"""A model folder: config, safetensors shards, and an index of which tensor lies where.

Local folders and hub ids. Only safetensors are read; pickles are refused; an index may name only files of its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import model_validator

from mi_prun.architecture import Config, block_of, extra_blocks, family_of, num_blocks
from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.shard import Shard, TensorInfo, read_shard

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What is taken from the hub: config, weights, and all that comes along (`companions`). The hub tells cases apart.
HUB_PATTERNS = (
    "*.json", "*.safetensors", "*.txt", "*.model*", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "README*",
    *(f"{case}*" for word in ("license", "licence", "notice", "copying")
      for case in (word, word.upper(), word.title())),
    "*use_policy*", "*USE_POLICY*", "*acceptable_use*", "*ACCEPTABLE_USE*",
)  # fmt: skip
HUB_IGNORED = ("*/*.safetensors", "consolidated*.safetensors")  # the same weights in another layout
SAMPLE_BYTES = 1024


class ModelIdentity(Record):
    """Which dense model an analysis, a plan or a checkpoint belongs to.

    config_sha256: of the config, keys sorted.
    weights_sha256: of every tensor's name, dtype, shape and its first and last 1,024 bytes, sorted by name. It tells
    a fine-tuned sibling apart without reading gigabytes.
    """

    name: str
    model_type: str
    num_blocks: int
    num_parameters: int
    block_parameters: tuple[int, ...]
    config_sha256: str
    weights_sha256: str

    @model_validator(mode="after")
    def _sizes(self) -> ModelIdentity:
        if not 1 <= self.num_blocks == len(self.block_parameters) or sum(self.block_parameters) > self.num_parameters:
            raise ValueError("block_parameters must list one number a block, together no more than num_parameters")
        return self

    def same_model(self, other: ModelIdentity) -> bool:
        """True where the contents agree; the name, a path or a hub id, may differ."""
        return (self.config_sha256, self.weights_sha256) == (other.config_sha256, other.weights_sha256)


@dataclass(frozen=True)
class ModelFolder:
    """A checked folder. `tensors` maps a name to its shard's path and its place in it."""

    name: str
    path: Path
    config: Config
    shards: tuple[Shard, ...]

    @property
    def tensors(self) -> dict[str, tuple[Path, TensorInfo]]:
        return {name: (shard.path, info) for shard in self.shards for name, info in shard.tensors.items()}

    @property
    def num_blocks(self) -> int:
        return num_blocks(self.config)

    @property
    def weight_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


def open_model(reference: str | Path) -> ModelFolder:
    """Open and check a local folder or a hub id (downloaded through huggingface_hub's cache).

    Raises UserError for a missing config, missing, truncated or unindexed shards, pickles, and names that lead outside.
    """
    path = resolve(reference)
    config = read_config(path)
    shards = _shards(path)
    return ModelFolder(str(reference), path, config, shards)


def resolve(reference: str | Path) -> Path:
    """The local folder of a model named by a path or a hub id."""
    path = Path(reference)
    if path.is_dir():
        return path
    text = str(reference)
    if path.exists():
        raise UserError(f"model {text} is a file; name the folder that holds config.json")
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or text.endswith("/"):
        raise UserError(f"model {text}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=list(HUB_PATTERNS), ignore_patterns=list(HUB_IGNORED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model {text}: no such folder, and the hub did not give it: {first}") from error


def read_config(path: Path) -> Config:
    """config.json of a folder, as a dict."""
    return read_json_object(path / "config.json", f"model {path} has no config.json; not a model folder")


def read_json_object(path: Path, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(missing)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object")
    return data


def _shards(path: Path) -> tuple[Shard, ...]:
    weight_map = read_weight_map(path)
    if weight_map is not None:
        return _indexed_shards(path, weight_map)
    single = path / SINGLE_NAME
    if single.is_file():
        if escapes(single, path):
            raise UserError(f"model {path}: {SINGLE_NAME} is a link that leads outside the folder; refused")
        return (read_shard(single),)
    if (entry := read_config(path).get("mi_prun")) and isinstance(entry, dict) and entry.get("weights") == "virtual":
        raise UserError(
            f"model {path} is a virtual checkpoint without weights of its own; name its dense model {entry.get('base')}"
        )
    pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in path.glob(pattern))
    if pickles:
        raise UserError(f"model {path} has only pickled weights ({pickles[0]}); convert them to safetensors first")
    stray = sorted(file.name for file in path.glob("*.safetensors"))
    if stray:
        raise UserError(f"model {path} has {stray[0]} but neither {SINGLE_NAME} nor {INDEX_NAME}; the index is missing")
    raise UserError(f"model {path} has no weights ({SINGLE_NAME} or {INDEX_NAME})")


def read_weight_map(path: Path) -> dict[str, str] | None:
    """Tensor name -> file name, of a folder's index; None where the weights are in one file. No shard is opened."""
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


def _indexed_shards(path: Path, weight_map: dict[str, str]) -> tuple[Shard, ...]:
    files = sorted(set(weight_map.values()))
    # Others, such as `consolidated.safetensors`, are the same weights in another layout.
    if stray := sorted(file.name for file in path.glob("model-*-of-*.safetensors") if file.name not in files):
        raise UserError(f"model {path}: shard {stray[0]} is not named in {INDEX_NAME}; the index is not whole")
    shards = []
    for file in files:
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
    """Links are the hub cache's way (snapshots/ -> blobs/ of the same repository); any other way out is refused."""
    target, home = file.resolve(), folder.resolve()
    repository = home.parent.parent if home.parent.name == "snapshots" else home
    return not target.is_relative_to(repository)


def identity_of(model: ModelFolder) -> ModelIdentity:
    """Digest a model; reads the config and at most 2 KiB of each tensor."""
    family = family_of(model.config)
    blocks = [0] * model.num_blocks
    extra = extra_blocks(model.config)
    total = 0
    digest = hashlib.sha256()
    tensors = model.tensors
    for shard in model.shards:
        for info in shard.tensors.values():
            total += info.num_elements
            block = block_of(info.name, family)
            if block is None or len(blocks) <= block < len(blocks) + extra:
                continue
            if block >= len(blocks):
                raise UserError(
                    f"tensor {info.name!r} belongs to block {block}, but the config has {len(blocks)} blocks"
                )
            blocks[block] += info.num_elements
    if empty := [block for block, count in enumerate(blocks) if count == 0]:
        raise UserError(f"model {model.path}: no tensor of block {empty[0]} ({family.block_prefix}.{empty[0]}.*) found")
    files = {shard.path: shard.path.open("rb") for shard in model.shards}
    try:
        for name in sorted(tensors):
            path, info = tensors[name]
            digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
            for begin in (info.begin, max(info.begin, info.end - SAMPLE_BYTES)):
                files[path].seek(begin)
                digest.update(files[path].read(min(SAMPLE_BYTES, info.end - begin)))
    finally:
        for file in files.values():
            file.close()
    config = json.dumps(model.config, sort_keys=True, separators=(",", ":"))
    return ModelIdentity(
        name=model.name,
        model_type=family.model_type,
        num_blocks=len(blocks),
        num_parameters=total,
        block_parameters=tuple(blocks),
        config_sha256=hashlib.sha256(config.encode()).hexdigest(),
        weights_sha256=digest.hexdigest(),
    )


def structure_digest(tensors: Mapping[str, TensorInfo]) -> str:
    """Of each tensor's name, dtype and shape, sorted by name: whether an engine's model has a place for each."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\0{tensors[name].dtype}\0{tensors[name].shape}\0".encode())
    return digest.hexdigest()
