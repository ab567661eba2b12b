"""A model folder: config, safetensors shards, and an index of which tensor lies where.

Local folders and hub ids. Only safetensors are read; pickles are refused; an index may name only files of its folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import model_validator

from mi_prun.architecture.architecture import Config, block_of, extra_blocks, family_of, num_blocks, renamed
from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.model.hub import at_commit, fetch
from mi_prun.model.shard import Shard, TensorInfo, read_shard

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SAMPLE_BYTES = 1024


class Parts(Record):
    """What tells a dense model by its kept blocks alone, whatever files they lie in.

    names_sha256: of all tensors' names, as the index has them.
    block_sha256: of each block, as `weights_sha256` is of the whole. rest_sha256: of what belongs to no block.
    """

    names_sha256: str
    block_sha256: tuple[str, ...]
    rest_sha256: str
    weight_bytes: int


class ModelIdentity(Record):
    """Which dense model an analysis, a plan or a checkpoint belongs to.

    config_sha256: of the config, keys sorted.
    weights_sha256: of every tensor's name, dtype, shape and its first and last 1,024 bytes, sorted by name. It tells
    a fine-tuned sibling apart without reading gigabytes.
    parts: None where an older release wrote it.
    """

    name: str
    model_type: str
    num_blocks: int
    num_parameters: int
    block_parameters: tuple[int, ...]
    config_sha256: str
    weights_sha256: str
    parts: Parts | None = None

    @model_validator(mode="after")
    def _sizes(self) -> ModelIdentity:
        if not 1 <= self.num_blocks == len(self.block_parameters) or sum(self.block_parameters) > self.num_parameters:
            raise ValueError("block_parameters must list one number a block, together no more than num_parameters")
        if self.parts is not None and len(self.parts.block_sha256) != self.num_blocks:
            raise ValueError("block_sha256 must list one digest a block")
        return self

    def same_model(self, other: ModelIdentity) -> bool:
        """True where the contents agree; the name, a path or a hub id, may differ."""
        return (self.config_sha256, self.weights_sha256) == (other.config_sha256, other.weights_sha256)


@dataclass(frozen=True)
class ModelFolder:
    """A checked folder. `tensors` maps a name to its shard's path and its place in it.

    absent: tensors that the index names, in files that were not asked of the hub.
    """

    name: str
    path: Path
    config: Config
    shards: tuple[Shard, ...]
    absent: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, tuple[Path, TensorInfo]]:
        return {name: (shard.path, info) for shard in self.shards for name, info in shard.tensors.items()}

    @property
    def num_blocks(self) -> int:
        return num_blocks(self.config)

    @property
    def weight_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


def open_model(reference: str | Path, kept: Sequence[int] | None = None) -> ModelFolder:
    """Open and check a local folder or a hub id (downloaded through huggingface_hub's cache).

    kept: the blocks (0-based) that are wanted of it; of a hub id no other files are fetched than those that hold them.
    Raises UserError for a missing config, missing, truncated or unindexed shards, pickles, and names that lead outside.
    """
    path = resolve(reference, kept)
    wanted = None if kept is None or Path(reference).is_dir() else files_of(path, kept)
    shards, absent = _shards(path, wanted)
    return ModelFolder(str(reference), path, read_config(path), shards, absent)


def resolve(reference: str | Path, kept: Sequence[int] | None = None) -> Path:
    """The local folder of a model named by a path or a hub id. kept: as of `open_model`."""
    path = Path(reference)
    if path.is_dir():
        return path
    text = str(reference)
    if path.exists():
        raise UserError(f"model {text} is a file; name the folder that holds config.json")
    if kept is None:
        return fetch(text)
    small = fetch(text, ())
    return fetch(at_commit(text, small), files_of(small, kept))


def files_of(folder: Path, kept: Sequence[int]) -> list[str] | None:
    """Files of weights that hold a tensor of the blocks `kept` (0-based) or of none; None where there is no index."""
    weight_map = read_weight_map(folder)
    if weight_map is None:
        return None
    config = read_config(folder)
    family, count = family_of(config), num_blocks(config)
    held = (file for name, file in weight_map.items() if renamed(name, family, kept, num_blocks=count) is not None)
    return sorted(set(held))


def read_config(path: Path) -> Config:
    """config.json of a folder, as a dict."""
    return read_json_object(path / "config.json", f"model {path} has no config.json; not a model folder")


def read_json_object(path: Path, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(missing)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(data, ensure_ascii=False).encode()  # "\ud800", half a character, cannot be written again
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object")
    return data


def _shards(path: Path, wanted: Sequence[str] | None) -> tuple[tuple[Shard, ...], tuple[str, ...]]:
    """Those in the files `wanted` (None: all), and the names of the tensors in others."""
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


def _indexed_shards(path: Path, weight_map: dict[str, str], wanted: Sequence[str]) -> tuple[Shard, ...]:
    files = set(weight_map.values())
    # Others, such as `consolidated.safetensors`, are the same weights in another layout.
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
    """Links are the hub cache's way (snapshots/ -> blobs/ of the same repository); any other way out is refused."""
    target, home = file.resolve(), folder.resolve()
    repository = home.parent.parent if home.parent.name == "snapshots" else home
    return not target.is_relative_to(repository)


def check_quantization_beside(dense: ModelFolder) -> None:
    """A quantisation that only its own file describes names blocks that would not be renumbered."""
    for name in ("hf_quant_config.json", "quantize_config.json"):
        if (dense.path / name).exists() and not dense.config.get("quantization_config"):
            raise UserError(
                f"model {dense.path} describes its quantisation in {name} only, not in config.json; not supported"
            )
    if dense.config.get("compression_config") and not dense.config.get("quantization_config"):
        raise UserError(
            f"model {dense.path}: config.json calls its quantisation compression_config, which transformers does not "
            "read; call it quantization_config"
        )


def identity_of(model: ModelFolder) -> ModelIdentity:
    """Digest a model; reads the config and at most 2 KiB of each tensor."""
    family = family_of(model.config)
    blocks = [0] * model.num_blocks
    extra = extra_blocks(model.config)
    total = 0
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
    whole, by_block, rest = _sample_digests(model)
    return ModelIdentity(
        name=model.name,
        model_type=family.model_type,
        num_blocks=len(blocks),
        num_parameters=total,
        block_parameters=tuple(blocks),
        config_sha256=config_digest(model.config),
        weights_sha256=whole,
        parts=Parts(
            names_sha256=_names_digest(model), block_sha256=by_block, rest_sha256=rest, weight_bytes=model.weight_bytes
        ),
    )


def differing_part(model: ModelFolder, dense: ModelIdentity, kept: Sequence[int]) -> str | None:
    """What of a model is not as in `dense`: None where all is. Of blocks that are not `kept` only the names count."""
    if config_digest(model.config) != dense.config_sha256:
        return "config"
    _, by_block, rest = _sample_digests(model, kept)
    parts = dense.parts
    if (
        parts is None
        or _names_digest(model) != parts.names_sha256
        or rest != parts.rest_sha256
        or any(by_block[block] != parts.block_sha256[block] for block in kept)
    ):
        return "weights"
    return None


def config_digest(config: Config) -> str:
    """Of a config, keys sorted: `ModelIdentity.config_sha256`."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _names_digest(model: ModelFolder) -> str:
    return hashlib.sha256("\0".join(sorted((*model.tensors, *model.absent))).encode()).hexdigest()


def _sample_digests(model: ModelFolder, kept: Sequence[int] | None = None) -> tuple[str, tuple[str, ...], str]:
    """Of the tensors that are there: of all, of each block, and of those that belong to none.

    kept: blocks (0-based) to look at; None: all.
    """
    family, tensors = family_of(model.config), model.tensors
    whole, rest = hashlib.sha256(), hashlib.sha256()
    blocks = [hashlib.sha256() for _ in range(model.num_blocks)]
    with contextlib.ExitStack() as stack:
        files = {shard.path: stack.enter_context(shard.path.open("rb", buffering=0)) for shard in model.shards}
        for file in files.values():
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead into what is not looked at
        for name in sorted(tensors):
            path, info = tensors[name]
            block = block_of(name, family)
            if block is None or block >= len(blocks):
                part = rest
            elif kept is None or block in kept:
                part = blocks[block]
            else:
                continue
            sample = f"{name}\0{info.dtype}\0{info.shape}\0".encode()
            for begin in (info.begin, max(info.begin, info.end - SAMPLE_BYTES)):
                files[path].seek(begin)
                sample += files[path].read(min(SAMPLE_BYTES, info.end - begin))
            whole.update(sample)
            part.update(sample)
    return whole.hexdigest(), tuple(digest.hexdigest() for digest in blocks), rest.hexdigest()


def structure_digest(tensors: Mapping[str, TensorInfo]) -> str:
    """Of each tensor's name, dtype and shape, sorted by name: whether an engine's model has a place for each."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\0{tensors[name].dtype}\0{tensors[name].shape}\0".encode())
    return digest.hexdigest()
