"""The closed form of a model that does not fit in memory, one block at a time: `mi-prun heal --fit --stream-blocks`.

One way through the blocks carries the states of three models over the same text: the dense one, the pruned one, and the
one that is refitted. Where a dropped run ends, the block before it is loaded again, and its output matrix is refitted
to the dense states (`closed_form.py`). The same way judges: the held-out text goes through all three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_prun.analysis.streamed_model import StreamedModel
from mi_prun.architecture.architecture import renamed
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.recovery.closed_form import Refit, fitted_runs, output_matrix, refit_block
from mi_prun.recovery.distillation import losses
from mi_prun.recovery.judge import Judged, judged
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.text.calibration import Windows

AFTER_IT = (1,)  # what a model of one block is said to drop: a block that it has not


@dataclass(frozen=True)
class StreamedFit:
    """The result of `fit_streamed`.

    tensors: the refitted matrices, by their names in the dense model's files. before, after: by kind of text.
    """

    tensors: dict[str, Tensor]
    fits: list[Refit]
    before: list[Judged]
    after: list[Judged]


@dataclass
class Stream:
    """A batch and its states at the boundary that was reached. pruned: None for text to fit on."""

    tokens: Tensor
    dense: Tensor
    fitted: Tensor
    pruned: Tensor | None


@torch.no_grad()
def fit_streamed(
    streamed: StreamedModel,
    dropped: Sequence[int],
    windows: Tensor,
    kinds: Sequence[Windows],
    *,
    ridge: float,
    batch_windows: int,
    advance: Callable[[float], None] | None = None,
) -> StreamedFit:
    """Refit the matrix in front of each dropped run. windows: to fit on; kinds: to judge on, before and after.

    Raises UserError as `closed_form.refit` does.
    """
    folder = streamed.folder
    runs = {end: start for start, end in fitted_runs(dropped)}
    batches = list(torch.split(windows, batch_windows))
    judging = [list(torch.split(kind.tokens, batch_windows)) for kind in kinds]
    last_fitted, gone = {start - 1 for start in runs.values()}, set(dropped)
    streams: list[Stream] = []
    tensors: dict[str, Tensor] = {}
    fits: list[Refit] = []
    for block in range(folder.num_blocks):
        one = _one_block(streamed, block)
        if block == 0:
            for tokens in batches:
                streams.append(_begin(one, tokens, judged=False))
            streams += [_begin(one, tokens, judged=True) for kind in judging for tokens in kind]
        for stream in streams:
            stream.dense = one.run(stream.dense, [0])
            if block not in gone:
                if stream.pruned is not None:
                    stream.pruned = one.run(stream.pruned, [0])
                if block not in last_fitted:  # else it runs when its matrix is known
                    stream.fitted = one.run(stream.fitted, [0])
            if advance is not None:
                advance(stream.tokens.numel())
        del one
        if block + 1 in runs:
            fitted = runs[block + 1] - 1
            one = _one_block(streamed, fitted)
            fit_on = streams[: len(batches)]
            refit = refit_block(one, [s.fitted for s in fit_on], [s.dense for s in fit_on], 0, ridge)
            name, file = output_matrix(one, 0), _file_name(streamed, output_matrix(one, 0), fitted)
            stored = one.current(name).detach().cpu().to(STORED[folder.tensors[file][1].dtype])
            one.give(name, stored.to(one.shared(name)))  # as it will be read
            with one.student():
                for stream in streams:
                    stream.fitted = one.run(stream.fitted, [0])
            tensors[file] = stored
            fits.append(Refit(file, refit.error_before, refit.error_after))
            del one
    tail = streamed.load_tail()
    before, after, place = [], [], len(batches)
    for kind, parts in zip(kinds, judging, strict=True):
        own = streams[place : place + len(parts)]
        place += len(parts)
        before.append(judged(kind, [losses(tail, _pruned(s), s.dense, s.tokens) for s in own]))
        after.append(judged(kind, [losses(tail, s.fitted, s.dense, s.tokens) for s in own]))
    return StreamedFit(tensors, fits, before, after)


STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _one_block(streamed: StreamedModel, block: int) -> SharedWeights:
    model: BlockModel = streamed.load(block)
    return SharedWeights(model, AFTER_IT, streamed.family.block_prefix)


def _begin(one: SharedWeights, tokens: Tensor, *, judged: bool) -> Stream:
    entry = one.embed(tokens)
    return Stream(tokens, entry, entry, entry if judged else None)


def _pruned(stream: Stream) -> Tensor:
    if stream.pruned is None:
        raise ValueError("text to fit on is not judged")
    return stream.pruned


def _file_name(streamed: StreamedModel, name: str, block: int) -> str:
    """Return the name in the dense model's files of a tensor of the model of one block."""
    family = streamed.family
    rest = name.removeprefix(f"{family.block_prefix}.0.")
    for file in streamed.folder.tensors:
        new = renamed(file, family, (block,))
        if new is not None and new != file and new.endswith(f".0.{rest}"):
            return file
        if new == file and file.endswith(f".{block}.{rest}"):  # block 0 keeps its name
            return file
    raise UserError(f"model {streamed.folder.path}: {name} of block {block} is not in its files")
