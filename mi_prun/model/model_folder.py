"""A model folder: config, safetensors shards, and an index of which tensor lies where.

Local folders and hub ids. Only safetensors are read; pickles are refused; an index may name only files of its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mi_prun.architecture.architecture import (
    Config,
    Family,
    block_kinds,
    block_of,
    extra_blocks,
    family_of,
    num_blocks,
    proof_of,
    renamed,
)
from mi_prun.errors import UserError
from mi_prun.files import check_name, read_json_object
from mi_prun.model.hub import at_commit, fetch
from mi_prun.model.identity import ModelIdentity, Parts, Tensors, config_digest, names_digest, weight_digests
from mi_prun.model.pretrained import pretrained_config, pretrained_tokenizer
from mi_prun.model.shard import Shard
from mi_prun.model.weight_files import SINGLE_NAME, open_shards, read_weight_map

if TYPE_CHECKING:
    from torch import Tensor

MAX_WINDOW_TOKENS = 2048


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder, opened once and handed down. Each property is computed at most once, when first asked.

    config: config.json as a dict.
    shards: the only source of weights. Digests, the loaded model and the written checkpoint all read these files.
    absent: tensors that the index names, in files that were not asked of the hub.
    """

    name: str
    path: Path
    config: Config
    shards: tuple[Shard, ...]
    absent: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> Tensors:
        """Each tensor's name, its shard's path and its place there."""
        return {name: (shard.path, info) for shard in self.shards for name, info in shard.tensors.items()}

    @property
    def weight_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @cached_property
    def family(self) -> Family:
        """The family of the config. Raises UserError if it is not supported."""
        return family_of(self.config)

    @cached_property
    def num_blocks(self) -> int:
        return num_blocks(self.config)

    @cached_property
    def block_kinds(self) -> tuple[str, ...]:
        """The kind of each block, e.g. `sliding_attention`."""
        return tuple(block_kinds(self.config))

    @cached_property
    def identity(self) -> ModelIdentity:
        """The model's digests and sizes. At most 2 KiB of each tensor are read, once.

        Raises UserError if the tensors do not fit the config.
        """
        blocks = self._block_parameters()
        digests = weight_digests(self.tensors, self.family, self.num_blocks)
        return ModelIdentity(
            name=self.name,
            model_type=self.family.model_type,
            num_blocks=len(blocks),
            num_parameters=sum(info.num_elements for _, info in self.tensors.values()),
            block_parameters=blocks,
            config_sha256=config_digest(self.config),
            weights_sha256=digests.whole,
            parts=Parts(
                names_sha256=names_digest(self._names()),
                block_sha256=digests.by_block,
                rest_sha256=digests.rest,
                weight_bytes=self.weight_bytes,
            ),
            proof=proof_of(self.config),
        )

    def differing_part(self, dense: ModelIdentity, kept: Sequence[int]) -> str | None:
        """Return "config" or "weights" if that differs from `dense`, None if nothing does.

        Blocks that are not in `kept` count by their names only, and no byte of them is read.
        """
        if config_digest(self.config) != dense.config_sha256:
            return "config"
        if dense.parts is None or names_digest(self._names()) != dense.parts.names_sha256:
            return "weights"
        known: ModelIdentity | None = vars(self).get("identity")  # digested already: nothing is read again
        if known is not None and known.parts is not None:
            by_block, rest = known.parts.block_sha256, known.parts.rest_sha256
        else:
            digests = weight_digests(self.tensors, self.family, self.num_blocks, kept)
            by_block, rest = digests.by_block, digests.rest
        same = rest == dense.parts.rest_sha256 and all(by_block[b] == dense.parts.block_sha256[b] for b in kept)
        return None if same else "weights"

    @cached_property
    def pretrained_config(self) -> Any:
        """The config as transformers' own object."""
        return pretrained_config(self.config, f"model {self.path}")

    @property
    def text_config(self) -> Any:
        """The part of `pretrained_config` that is about text: the whole, unless the model nests it."""
        text = self.pretrained_config.get_text_config()
        if isinstance(text, dict):
            kind = self.family.model_type
            raise UserError(f"model {self.path}: a {kind} config has no field 'text_config'; remove it")
        return text

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer. Raises UserError if the folder has none that transformers can use."""
        return pretrained_tokenizer(self.path, self.pretrained_config)

    @property
    def hidden_size(self) -> int:
        """d, the width of a boundary state."""
        return int(self.text_config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.text_config.vocab_size)

    def context_tokens(self, cap: int = MAX_WINDOW_TOKENS) -> int:
        """Return the default window length: the model's context, at most `cap`."""
        limit = self._positions()
        return min(cap, limit) if limit else cap

    def check_window(self, window_tokens: int | None) -> None:
        """Refuse a window that is longer than the positions of a model that learns each position."""
        if window_tokens is None or not self.family.learned_positions:
            return
        limit = self._positions()
        if limit and window_tokens > limit:
            raise UserError(
                f"--window must be at most {limit}, the positions that {self.name} has, got {window_tokens}"
            )

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse token ids that the embedding has no row for. On an accelerator they would end the process."""
        largest = int(tokens.max())
        if largest >= self.vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"model {self.path}: the text holds token {largest} of its tokenizer ({token!r}), but the embedding "
                f"has {self.vocab_size} rows (0..{self.vocab_size - 1}); give text without that token, or resize the "
                "embedding and train it"
            )

    def _positions(self) -> int | None:
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    def _names(self) -> tuple[str, ...]:
        return (*self.tensors, *self.absent)

    def _block_parameters(self) -> tuple[int, ...]:
        """Parameters of each block. Refuses a tensor of a block that the config does not have, and an empty block."""
        blocks = [0] * self.num_blocks
        extra = extra_blocks(self.config)
        for name, (_, info) in self.tensors.items():
            block = block_of(name, self.family)
            if block is None or len(blocks) <= block < len(blocks) + extra:
                continue
            if block >= len(blocks):
                raise UserError(f"tensor {name!r} belongs to block {block}, but the config has {len(blocks)} blocks")
            blocks[block] += info.num_elements
        if empty := [block for block, count in enumerate(blocks) if count == 0]:
            prefix = self.family.block_prefix
            raise UserError(f"model {self.path}: no tensor of block {empty[0]} ({prefix}.{empty[0]}.*) found")
        return tuple(blocks)


def open_model(reference: str | Path, kept: Sequence[int] | None = None) -> ModelFolder:
    """Open and check a local folder or a hub id (downloaded through huggingface_hub's cache).

    kept: the blocks (0-based) that are wanted. Of a hub id only the files that hold them are fetched.
    Raises UserError for a missing config, missing, truncated or unindexed shards, pickles, and names that lead outside.
    """
    path = resolve(reference, kept)
    config = read_config(path)
    wanted = None if kept is None or Path(reference).is_dir() else files_of(path, config, kept)
    shards, absent = open_shards(path, config, wanted)
    name = str(reference) if Path(reference).is_dir() else at_commit(str(reference), path)
    return ModelFolder(name, path, config, shards, absent)


def resolve(reference: str | Path, kept: Sequence[int] | None = None) -> Path:
    """Return the local folder of a model named by a path or a hub id. kept: see `open_model`."""
    path = Path(reference)
    check_name(path, "model")
    if path.is_dir():
        return path
    text = str(reference)
    if path.exists():
        raise UserError(f"model {text} is a file; name the folder that holds config.json")
    small = fetch(text, ())
    if kept is None:
        files = set((read_weight_map(small) or {"": SINGLE_NAME}).values())
    else:
        files = set(files_of(small, read_config(small), kept) or [SINGLE_NAME])
    return fetch(at_commit(text, small), sorted(files))


def files_of(folder: Path, config: Config, kept: Sequence[int]) -> list[str] | None:
    """Return the files that hold a tensor of the blocks `kept` (0-based) or of no block; None if there is no index."""
    weight_map = read_weight_map(folder)
    if weight_map is None:
        return None
    family, count = family_of(config), num_blocks(config)
    held = (file for name, file in weight_map.items() if renamed(name, family, kept, num_blocks=count) is not None)
    return sorted(set(held))


def read_config(path: Path) -> Config:
    """Return config.json of a folder as a dict."""
    return read_json_object(path / "config.json", f"model {path} has no config.json; not a model folder")


def check_quantization_beside(dense: ModelFolder) -> None:
    """Refuse a quantisation that config.json does not describe: the blocks that it names would not be renumbered."""
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
