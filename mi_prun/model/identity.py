"""Which model it is: digests of a config, of tensor names and of a sample of each tensor."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import model_validator

from mi_prun.architecture.architecture import Config, Family, block_of
from mi_prun.architecture.proof import Proof
from mi_prun.artefact import Record
from mi_prun.model.shard import TensorInfo

SAMPLE_BYTES = 1024

Tensors = Mapping[str, tuple[Path, TensorInfo]]
"""Each tensor's name, its file and its place there."""


class Parts(Record):
    """Digests that tell a dense model by its kept blocks alone, whatever files they lie in.

    names_sha256: all tensor names of the index, sorted.
    block_sha256: one digest per block, made as `ModelIdentity.weights_sha256` is made for the whole.
    rest_sha256: the tensors that belong to no block.
    """

    names_sha256: str
    block_sha256: tuple[str, ...]
    rest_sha256: str
    weight_bytes: int


class ModelIdentity(Record):
    """The identity of the dense model that an analysis, a plan or a checkpoint belongs to.

    config_sha256: the config with sorted keys.
    weights_sha256: each tensor's name, dtype, shape and its first and last 1,024 bytes, sorted by name. It tells a
    fine-tuned model from its parent without reading gigabytes.
    parts: None if an older release wrote it.
    proof: what shows that its blocks can be dropped, where no rule names the family; None where a rule does, or an
    older release wrote it.
    """

    name: str
    model_type: str
    num_blocks: int
    num_parameters: int
    block_parameters: tuple[int, ...]
    config_sha256: str
    weights_sha256: str
    parts: Parts | None = None
    proof: Proof | None = None

    @model_validator(mode="after")
    def _sizes(self) -> ModelIdentity:
        if not 1 <= self.num_blocks == len(self.block_parameters) or sum(self.block_parameters) > self.num_parameters:
            raise ValueError("block_parameters must list one number a block, together no more than num_parameters")
        if min(self.block_parameters) < 1:
            raise ValueError("block_parameters must be 1 or more each")
        if self.parts is not None and len(self.parts.block_sha256) != self.num_blocks:
            raise ValueError("block_sha256 must list one digest a block")
        return self

    def same_model(self, other: ModelIdentity) -> bool:
        """Return True if the contents agree. The names, paths or hub ids, may differ."""
        return (self.config_sha256, self.weights_sha256) == (other.config_sha256, other.weights_sha256)


@dataclass(frozen=True)
class WeightDigests:
    """Digests of sampled tensors: the whole, each block, and what belongs to no block."""

    whole: str
    by_block: tuple[str, ...]
    rest: str


def config_digest(config: Config) -> str:
    """Return the sha256 of a config with sorted keys: `ModelIdentity.config_sha256`."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def names_digest(names: Iterable[str]) -> str:
    """Return the sha256 of the sorted tensor names: `Parts.names_sha256`."""
    return hashlib.sha256("\0".join(sorted(names)).encode()).hexdigest()


def structure_digest(tensors: Mapping[str, TensorInfo]) -> str:
    """Return the sha256 of each tensor's name, dtype and shape, sorted by name.

    Equal digests mean that an engine's model has a place for each tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\0{tensors[name].dtype}\0{tensors[name].shape}\0".encode())
    return digest.hexdigest()


def weight_digests(
    tensors: Tensors, family: Family, num_blocks: int, kept: Sequence[int] | None = None
) -> WeightDigests:
    """Digest the first and last SAMPLE_BYTES of each tensor.

    kept: the blocks (0-based) to read; the other blocks' digests are then of nothing. None: all.
    """
    whole, rest = hashlib.sha256(), hashlib.sha256()
    blocks = [hashlib.sha256() for _ in range(num_blocks)]
    with contextlib.ExitStack() as stack:
        paths = dict.fromkeys(path for path, _ in tensors.values())
        files = {path: stack.enter_context(path.open("rb", buffering=0)) for path in paths}
        for file in files.values():
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead into what is not sampled
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
    return WeightDigests(whole.hexdigest(), tuple(digest.hexdigest() for digest in blocks), rest.hexdigest())
