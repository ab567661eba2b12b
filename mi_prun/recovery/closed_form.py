"""The closed form: the output matrix in front of each dropped run is refitted to the dense state behind the run.

Let block b be the last one before the run [i, j), a the input of its output matrix W (`down_proj`), h its result in the
student, and H the dense boundary state j. Over tokens t with weights w_t = 1 / |H_t|^2 the change of W is

    dW' = (A' w A + r m I)^-1 A' w (H - h),     m the mean of the diagonal of A' w A,  r the ridge,

so the ridge holds W to what it was. The sums stream over the text. First tokens of a window stay in: their states are
huge, and a fit that has not seen them breaks the model. It is ReplaceMe's (arXiv 2505.02819) with all of W free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mi_prun.errors import UserError
from mi_prun.recovery.shared_weights import SharedWeights

OUTPUT_MATRICES = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "fc2")
LINEAR_TOLERANCE = {torch.float32: 1e-3}  # of a change of the matrix, in what the block gives
ROUNDED_TOLERANCE = 0.1


@dataclass(frozen=True)
class Refit:
    """One matrix: its name in the dense model, and the weighted squared error before and after (1: as |H|^2)."""

    name: str
    error_before: float
    error_after: float


class NoClosedFormError(UserError):
    """The closed form does not fit the model, or has nothing to refit in it."""


def dropped_runs(dropped: Sequence[int]) -> list[tuple[int, int]]:
    """Maximal runs [i, j) of the dropped blocks.

    >>> dropped_runs([3, 7, 8])
    [(3, 4), (7, 9)]
    """
    runs: list[tuple[int, int]] = []
    for block in dropped:
        if runs and runs[-1][1] == block:
            runs[-1] = runs[-1][0], block + 1
        else:
            runs.append((block, block + 1))
    return runs


def fitted_runs(dropped: Sequence[int]) -> list[tuple[int, int]]:
    """The dropped runs that a block stands before. Raises UserError where there is none."""
    runs = [run for run in dropped_runs(dropped) if run[0] > 0]
    if not runs:
        raise NoClosedFormError(
            "the closed form refits what stands before a dropped run, and the only run begins at block 0; heal by "
            "training"
        )
    return runs


def refitted(weights: SharedWeights) -> list[str]:
    """The names of what `refit` may give the student; none for a family that it does not know."""
    matrices = (_output_matrix(weights, start - 1) for start, _ in dropped_runs(weights.dropped) if start > 0)
    return [name for name in matrices if name is not None]


def output_matrix(weights: SharedWeights, block: int) -> str:
    """The name of the matrix whose result a block adds to its state last. Raises UserError where there is none."""
    if (name := _output_matrix(weights, block)) is None:
        raise NoClosedFormError(
            f"the closed form needs one output matrix a block; block {block} has none by a name that is known"
        )
    return name


def _output_matrix(weights: SharedWeights, block: int) -> str | None:
    names = weights.names([block])
    known = (f"{weights.prefix}.{block}.{path}.weight" for path in OUTPUT_MATRICES)
    return next((name for name in known if name in names), None)


@torch.no_grad()
def refit(
    weights: SharedWeights,
    windows: Tensor,
    *,
    ridge: float,
    batch_windows: int,
    advance: Callable[[float], None] | None = None,
) -> list[Refit]:
    """Give the student refitted output matrices, run by run. windows: (windows, window_tokens).

    Raises UserError where no run has a block with such a matrix before it.
    """
    runs = fitted_runs(weights.dropped)
    dense = [weights.embed(tokens) for tokens in torch.split(windows, batch_windows)]
    ours = list(dense)
    shared = min(weights.dropped) > 0  # what stands before the first run is the same in both
    fits, at = [], 0
    for start, end in runs:
        fitted = start - 1
        between = [block for block in weights.kept if at <= block < fitted]
        for number, state in enumerate(dense):
            before = weights.run(state, range(at, fitted))
            dense[number] = weights.run(before, range(fitted, end))
            with weights.student():
                ours[number] = before if shared else weights.run(ours[number], between)
            if advance is not None:
                advance(before[..., 0].numel() * (end - at))
        fits.append(refit_block(weights, ours, dense, fitted, ridge))
        if end < runs[-1][1]:
            with weights.student():
                ours = [weights.run(state, [fitted]) for state in ours]
        at, shared = end, False
    return fits


def refit_block(
    weights: SharedWeights, states: Sequence[Tensor], targets: Sequence[Tensor], block: int, ridge: float
) -> Refit:
    """Let the student have a refitted output matrix of `block`. states: what the block gets; targets: should give."""
    name = output_matrix(weights, block)
    module = weights.module(name)
    transposed = not isinstance(module, nn.Linear)  # GPT-2 keeps its matrices the other way round
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(args[0].flatten(0, -2).float()))
    try:
        _check_linear(weights, name, block, states[0][:1], seen, transposed)
        gram, cross, error = _sums(weights, block, states[0], targets[0], seen)
        for state, target in zip(states[1:], targets[1:], strict=True):
            for total, part in zip((gram, cross, error), _sums(weights, block, state, target, seen), strict=True):
                total += part
    finally:
        handle.remove()
    if not (gram.isfinite().all() and cross.isfinite().all()):
        raise UserError(f"block {block} gives NaN or Inf: nothing can be fitted there")
    scale = gram.diagonal().mean()
    if not scale > 0:
        raise UserError(f"block {block} gives zeros before {name}: nothing can be fitted there")
    held = ridge * scale
    gram.diagonal().add_(held)  # in place: it has as many entries as the widest input of a block, squared
    change = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
    # (A' w A + r m I) dW' = A' w (H - h), so the last term of the square needs no further product.
    left = float(error - torch.linalg.vecdot(change, cross).sum() - held * change.square().sum())
    old = weights.current(name)
    weights.give(name, (old.double() + (change if transposed else change.T)).to(old.dtype))
    tokens = sum(state[..., 0].numel() for state in states)
    return Refit(name, float(error) / tokens, left / tokens)


def _sums(
    weights: SharedWeights, block: int, state: Tensor, target: Tensor, seen: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`A' w A`, `A' w (H - h)` and the weighted squared error of one batch, in float64."""
    seen.clear()
    with weights.student():
        after = weights.run(state, [block])
    goal = target.flatten(0, 1).float()
    missing = goal - after.flatten(0, 1).float()
    weight = 1 / goal.square().sum(-1, keepdim=True).clamp(min=1e-12)
    weighted = (seen[-1] * weight).T
    return (weighted @ seen[-1]).double(), (weighted @ missing).double(), (missing.square() * weight).sum().double()


def _check_linear(
    weights: SharedWeights, name: str, block: int, state: Tensor, seen: list[Tensor], transposed: bool
) -> None:
    """Refuse a block whose result does not change with the matrix as `a dW'`: a norm or a factor stands behind it."""
    with weights.student():
        before = weights.run(state, [block])
    if not before.isfinite().all():
        raise UserError(f"block {block} gives NaN or Inf: nothing can be fitted there")
    old, had = weights.current(name), weights.own.get(name)
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(0)).to(old.device)
    weights.give(name, (old + noise * old.float().std()).to(old.dtype))
    step = (weights.current(name).double() - old.double()).float()
    with weights.student():
        moved = weights.run(state, [block])
    del weights.own[name]
    if had is not None:
        weights.own[name] = had
    wanted = seen[-1] @ (step if transposed else step.T)
    error = (moved.float() - before.float()).flatten(0, 1) - wanted
    if not error.norm() <= LINEAR_TOLERANCE.get(state.dtype, ROUNDED_TOLERANCE) * wanted.norm():
        raise NoClosedFormError(
            f"the closed form does not fit this family: a norm or a factor stands behind {name}, so what the block "
            "gives is not linear in it; heal by training, with --no-fit"
        )
