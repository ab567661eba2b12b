"""Families that no rule names: whoever asks for one is sent to the prover, which accepts it or refuses it.

A proof needs a model and the checkpoint writer, which stand above this folder. So the prover is handed down, once, by
the package itself (`mi_prun/__init__.py`). Without a prover such a family is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from mi_prun.architecture.family import Config, Family
from mi_prun.errors import UserError

if TYPE_CHECKING:
    from mi_prun.architecture.proof import Proof

Prover = Callable[[Config, Sequence[int]], "tuple[Family, Proof]"]
"""A prover takes a dense config and one more set of blocks (0-based) to drop in the proof; the set may be empty. It
returns the family and its proof, or raises UserError."""

_prover: Prover | None = None
_assumed: ContextVar[Family | None] = ContextVar("assumed", default=None)


def set_prover(prover: Prover) -> None:
    """Set the prover of this process."""
    global _prover
    _prover = prover


def prove(config: Config, dropped: Sequence[int] = ()) -> tuple[Family, Proof]:
    """Return the family of a config that no rule names, and the proof. Raises UserError where there is none."""
    if _prover is None:
        raise UserError(f"model_type {config.get('model_type')!r} is named by no rule, and nothing can prove it here")
    return _prover(config, dropped)


@contextlib.contextmanager
def assumed(family: Family) -> Iterator[None]:
    """Let a family pass without a proof inside: it is being proved."""
    token = _assumed.set(family)
    try:
        yield
    finally:
        _assumed.reset(token)


def assumed_family(model_type: object) -> Family | None:
    """Return the family of that type that is being proved; None where none is."""
    family = _assumed.get()
    return family if family is not None and family.model_type == model_type else None
