"""A model that does not fit in memory, run one block at a time: `mi-prun analyze --stream-blocks`.

Each block is loaded as a model of one block. Its config is reduced by the rules of `architecture.py`, its tensors get
the names that they have in such a model. So a block has the masks, rotary embeddings and kind that it would have in a
pruned checkpoint, and there is one way to load a block. Only the first block gets the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mi_prun.analysis.boundaries import Boundaries, Collector, batches
from mi_prun.analysis.readers import Readers, block_reader, head_reader
from mi_prun.architecture.architecture import block_of, reduce_config, renamed
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import check_quantization, load_tensors
from mi_prun.model.model_folder import ModelFolder
from mi_prun.model.pretrained import pretrained_config

STUB_VOCABULARY = 8  # rows of the embedding of blocks that get boundary states, not tokens


class StreamedModel:
    """The blocks of a checked model folder (0-based), each loaded when it is asked for."""

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self.family = folder.family
        if self.family.text is not None:
            raise UserError(
                f"--stream-blocks: a {self.family.model_type} model nests its text model; not supported, load it whole"
            )
        check_quantization(folder)
        for block in range(folder.num_blocks):
            self._config(block)  # what cannot stand alone is refused before the pass

    def load(self, block: int) -> BlockModel:
        """Return a model that has the one block, as its block 0. Only block 0 gets the dense model's embedding."""
        return self._load(block, self._config(block), self._name)

    def load_tail(self) -> BlockModel:
        """Return a model of the last block with the dense model's norm and head, for logits."""
        last = self.folder.num_blocks - 1
        config = reduce_config(self.folder.config, (last,), assume_uniform=True, for_vllm=False)
        return self._load(last, config, lambda name, block: renamed(name, self.family, (block,)))

    def _load(self, block: int, fields: dict[str, Any], name_of: Callable[[str, int], str | None]) -> BlockModel:
        from safetensors import safe_open

        tensors: dict[str, Tensor] = {}
        for shard in self.folder.shards:
            wanted = {name: new for name in shard.tensors if (new := name_of(name, block)) is not None}
            if wanted:
                with safe_open(shard.path, framework="pt") as file:
                    tensors |= {new: file.get_tensor(name) for name, new in wanted.items()}
        title = f"block {block} of model {self.folder.path}"
        config = pretrained_config(fields, title)
        return load_tensors(tensors, self.family, config, self.dtype, self.device, title=title, block=block)

    def _name(self, name: str, block: int) -> str | None:
        """Return a tensor's name in the model of one block; None if that model does without it."""
        if block_of(name, self.family) is None:
            return name if block == 0 and not name.startswith("lm_head.") else None
        return renamed(name, self.family, (block,))

    def _config(self, block: int) -> dict[str, Any]:
        config = reduce_config(self.folder.config, (block,), assume_uniform=True, for_vllm=False)
        config["tie_word_embeddings"] = True  # no head of its own: it is not asked for logits
        if block:
            config |= {"vocab_size": STUB_VOCABULARY, "pad_token_id": None}
        return config


@torch.inference_mode()
def collect_streamed(
    streamed: StreamedModel,
    windows: Tensor,
    *,
    sample: Tensor,
    projection: int | None,
    seed: int,
    batch_tokens: int = 4096,
    advance: Callable[[float], None] | None = None,
) -> Boundaries:
    """Return what `boundaries.collect` returns, with one block in memory at a time.

    The boundary states of all windows stay in memory. windows: (windows, window_tokens). Batches come in the same
    order, so the result is the same.
    """
    count = streamed.folder.num_blocks
    states: list[Tensor] = []
    readers: list[Readers] = []
    collector: Collector | None = None
    for block in range(count):
        model = streamed.load(block)
        if collector is None:
            collector = Collector(count, model.hidden_size, projection, sample, seed, model.device)
            of_head = head_reader(model)
        readers.append(block_reader(model, 0))
        for number, (first, tokens) in enumerate(batches(windows, batch_tokens)):
            # Zeros of the same shape: what else a block is called with depends on the shape alone.
            entry = model.embed(tokens if block == 0 else torch.zeros_like(tokens))
            if block == 0:
                states.append(entry)
                collector.see(0, entry, first)
            before = states[number]
            states[number] = after = model.run(0, before)
            collector.see(block + 1, after, first)
            collector.compare(block, before, after)
            collector.check()
            if advance is not None:
                advance(tokens.numel() / count)
        del model
    if collector is None:
        raise ValueError("a model has at least one block")
    return collector.result(windows, Readers.joined([*readers, of_head]))
