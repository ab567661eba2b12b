"""CBO (arXiv 2602.00161): second-order Taylor of the loss in block gates, minimised over the sets of k blocks.

`h_{i+1} = h_i + (1 - a_i) f_i(h_i)`; `E(a) = sum_i g_i a_i + 1/2 sum_ij H_ij a_i a_j`, g and H the gradient and Hessian
of the mean cross-entropy at a = 0. Two forms of H: `exact`, by double backward through the L gates, and `fisher`, the
mean over samples of g g^T (each window cut in pieces), which needs one backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mi_prun.console import progress
from mi_prun.model.block_model import BlockModel, hooked_states
from mi_prun.quality.evaluator import Dropped
from mi_prun.selection.context import Context
from mi_prun.selection.quadratic import low_states
from mi_prun.selection.race import first_windows

Form = Literal["exact", "fisher"]

# What a step costs in forward passes: a backward is two; a Hessian row is a backward of a graph of three.
BACKWARD_PASSES = 2
HESSIAN_ROW_PASSES = 4


@dataclass(frozen=True)
class Taylor:
    """Derivatives of the mean loss in the block gates.

    gradient: (L,), hessian: (L, L), nats per token. passes: what they cost, in forward passes over the windows.
    """

    gradient: Tensor
    hessian: Tensor
    passes: float


def cbo(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the low states of CBO's quadratic, its Hessian by double backward (arXiv 2602.00161)."""
    return _low_states(context, "exact", k, count)


def cbo_fisher(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the low states of CBO's quadratic with a cheap Hessian, the mean of g g^T."""
    return _low_states(context, "fisher", k, count)


def _low_states(context: Context, form: Form, k: int, count: int) -> list[Dropped]:
    """Take the derivatives on the windows that candidates are first measured on."""
    windows = context.screening.windows[: first_windows(context)]

    def make() -> Taylor:
        with progress(f"cbo, {form} Hessian", windows.numel(), "tokens") as advance:
            return taylor(context.model, windows, form, advance=advance)

    derivatives = context.derive(f"taylor {form}", make)
    if context.extra.first(f"taylor {form}"):
        context.extra.block_tokens += derivatives.passes * windows.numel() * context.num_blocks
    # E = g^T a + 1/2 a^T H a, and a_i^2 = a_i: the diagonal of H is linear. `low_states` adds a pair once per order.
    linear = (derivatives.gradient + 0.5 * derivatives.hessian.diagonal()).numpy()
    return [dropped for _, dropped in low_states(linear, derivatives.hessian.numpy(), k, count, context.seed)]


def taylor(
    model: BlockModel, windows: Tensor, form: Form, *, pieces: int = 8, advance: Callable[[float], None] | None = None
) -> Taylor:
    """Differentiate the mean loss over `windows` (windows, window_tokens), one window at a time."""
    count = model.num_blocks
    gradient = torch.zeros(count, dtype=torch.float64)
    hessian = torch.zeros(count, count, dtype=torch.float64)
    # Attention's fused kernels have no second derivative; the plain one does.
    with gated(model) as gates, sdpa_kernel(SDPBackend.MATH):
        for window in torch.split(windows, 1):
            losses = _token_losses(model, window)  # (window_tokens - 1,)
            if form == "exact":
                (first,) = torch.autograd.grad(losses.mean(), gates, create_graph=True)
                rows = [torch.autograd.grad(first[i], gates, retain_graph=True)[0] for i in range(count)]
                hessian += torch.stack(rows).double().cpu()
                gradient += first.detach().double().cpu()
            else:
                parts = torch.tensor_split(losses, pieces)
                grads = [torch.autograd.grad(part.mean(), gates, retain_graph=True)[0] for part in parts if len(part)]
                sample = torch.stack(grads).double().cpu()
                hessian += sample.T @ sample / len(sample)
                gradient += sample.mean(0)
            if advance is not None:
                advance(window.numel())
    steps = HESSIAN_ROW_PASSES * count if form == "exact" else BACKWARD_PASSES * (pieces - 1)
    hessian = (hessian + hessian.T) / (2 * len(windows))
    return Taylor(gradient / len(windows), hessian, 1 + BACKWARD_PASSES + steps)


def _token_losses(model: BlockModel, window: Tensor) -> Tensor:
    tokens = window.to(model.device)
    logits = model.model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")


class gated:  # noqa: N801 - reads as the statement it makes
    """A model with gates: in `with gated(model) as gates` block i adds 1 - gates[i] of what it did.

    gates: (L,) zeros with gradients.
    """

    def __init__(self, model: BlockModel) -> None:
        self.model = model
        self.gates = torch.zeros(model.num_blocks, device=model.device, requires_grad=True)

    def __enter__(self) -> Tensor:
        def hook(index: int) -> Callable[..., Any]:
            def scale(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                before, after = hooked_states(args, kwargs, output)
                mixed = after - self.gates[index].to(after.dtype) * (after - before)
                return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

            return scale

        self.parameters = [p for p in self.model.model.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        self.handles = [
            block.register_forward_hook(hook(i), with_kwargs=True) for i, block in enumerate(self.model.blocks)
        ]
        return self.gates

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
        for parameter in self.parameters:
            parameter.requires_grad_(True)
