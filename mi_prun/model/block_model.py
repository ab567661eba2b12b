"""A causal LM taken apart at its blocks: embed, run one block, read the logits off a boundary state.

All that is known here about a family is where its blocks are (`Family.block_prefix`). A block also needs masks and
rotary embeddings. They are recorded as the model itself passes them: once per input shape, with every block bypassed.
Inputs are whole windows without padding, so they depend on the shape alone and are used again.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class BlockModel:
    """Blocks are 0-based; boundary state i, of shape (batch, tokens, d), is the input of block i."""

    def __init__(self, model: nn.Module, block_prefix: str, *, returns_tuple: bool = False) -> None:
        self.model = model.eval()
        self._output: Callable[[Tensor], Any] = (lambda state: (state,)) if returns_tuple else (lambda state: state)
        self.blocks = cast("nn.ModuleList", model.get_submodule(block_prefix))
        self._calls: list[Call] = []

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """d, the width of a boundary state."""
        return int(cast("Any", self.model).config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(cast("Any", self.model).config.get_text_config().vocab_size)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Return boundary state 0 of `tokens` (batch, tokens)."""
        calls: list[Call] = []
        entry: list[Tensor] = []

        def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not entry:
                entry.append(hidden)
            calls.append((args, kwargs))
            return self._output(hidden)

        with self._forwards([record] * self.num_blocks), self._without_head():
            self.model(input_ids=tokens.to(self.device), use_cache=False, logits_to_keep=1)
        self._calls = calls
        return entry[0]

    def run(self, block: int, hidden: Tensor) -> Tensor:
        """Return the boundary state after `block`. `hidden` must come from the last batch given to `embed`."""
        args, kwargs = self._calls[block]
        return state_of(self.blocks[block](hidden, *args, **kwargs))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (batch, tokens, vocabulary) of the last boundary state, by the model's norm and head."""

        def inject(state: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._output(hidden)

        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        with self._forwards([*[self._skip] * (self.num_blocks - 1), inject]):
            return cast("Tensor", self.model(input_ids=tokens, use_cache=False).logits)

    @contextlib.contextmanager
    def without(self, dropped: Sequence[int]) -> Iterator[nn.Module]:
        """Yield the model with the blocks `dropped` bypassed, for whoever needs the whole (generation, checks)."""
        with self._forwards([self._skip if block in dropped else None for block in range(self.num_blocks)]):
            yield self.model

    @contextlib.contextmanager
    def _without_head(self) -> Iterator[None]:
        """Leave out the product with the vocabulary. For one token of a batch, torch may copy the whole matrix."""
        head = cast("Any", self.model).get_output_embeddings()
        if head is None:
            yield
            return
        object.__setattr__(head, "forward", lambda state: state)
        try:
            yield
        finally:
            object.__delattr__(head, "forward")

    def _skip(self, state: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Stand in for a block's `forward`, and do nothing."""
        return self._output(state)

    @contextlib.contextmanager
    def _forwards(self, forwards: Sequence[Any]) -> Iterator[None]:
        """Set each block's `forward` (None: leave it), and restore it at the end. What stands in runs none of the
        block's hooks: a block whose weights are shared over processes is not put together for it.
        """
        changed = [
            (block, forward, [(name, getattr(block, name)) for name in HOOKS])
            for block, forward in zip(self.blocks, forwards, strict=True)
            if forward is not None
        ]
        try:
            for block, forward, _ in changed:
                object.__setattr__(block, "forward", forward)
                for name in HOOKS:
                    object.__setattr__(block, name, OrderedDict())
            yield
        finally:
            for block, _, hooks in changed:
                object.__delattr__(block, "forward")
                for name, own in hooks:
                    object.__setattr__(block, name, own)


def state_of(output: Any) -> Tensor:
    """Return the boundary state from a block's output. Some families return a tuple whose first entry it is."""
    return cast("Tensor", output[0] if isinstance(output, tuple) else output)


def hooked_states(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> tuple[Tensor, Tensor]:
    """Return the boundary states before and after a block from the arguments of its forward hook."""
    return cast("Tensor", args[0] if args else kwargs["hidden_states"]), state_of(output)
