"""`--max-ppl-increase 10%` or `--max-kl 0.05` in place of a ratio: as many blocks as cost no more than that."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Literal

from mi_prun.errors import UserError
from mi_prun.quality.evaluator import Dropped, NotFiniteError
from mi_prun.selection.baselines import TooManySetsError
from mi_prun.selection.context import Context
from mi_prun.selection.methods import Choice, choose

BROKEN = "a broken model"


@dataclass(frozen=True)
class Limit:
    """A limit of what dropping blocks may cost.

    value: a share of the dense perplexity (0.1 is 10 % more), or nats per token of KL(dense || pruned).
    """

    kind: Literal["perplexity", "kl"]
    value: float

    def text(self, value: float) -> str:
        """Return a cost in the limit's own words."""
        if math.isinf(value):
            return BROKEN
        return f"perplexity {value:+.1%}" if self.kind == "perplexity" else f"KL {value:.4g} nats/token"


@dataclass(frozen=True)
class Within:
    """A choice of k blocks that stays within a limit.

    cost: what these k blocks cost. next_cost: what k + 1 blocks cost, over the limit; infinite if they break the model,
    None if no more can go.
    forward_passes: all that was evaluated to find k.
    """

    choice: Choice
    cost: float
    next_cost: float | None
    forward_passes: float


def parse_limit(max_ppl_increase: str | None, max_kl: float | None) -> Limit | None:
    """Return the limit that the options name, if any."""
    if max_ppl_increase is not None:
        text = max_ppl_increase.strip()
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError as error:
            raise UserError(f"--max-ppl-increase must be like 10% or 0.1, got {max_ppl_increase!r}") from error
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"--max-ppl-increase must be over 0 and finite, got {max_ppl_increase}")
        if value >= 1 and not text.endswith("%"):  # a share that large is seldom meant
            raise UserError(f"--max-ppl-increase {text} is {value:.0%}; write {text}% or {value / 100:g}")
        return Limit("perplexity", value)
    if max_kl is not None:
        if not (math.isfinite(max_kl) and max_kl > 0):
            raise UserError(f"--max-kl must be over 0 and finite, in nats per token, got {max_kl}")
        return Limit("kl", max_kl)
    return None


def most_blocks(context: Context, limit: Limit, method: str, rerank: int | None) -> Within:
    """Find a k whose choice stays within `limit` on the ranking text while that of k + 1 does not. Both are measured.

    It is the largest k if the cost grows with k. If the cost falls again beyond k + 1, that is not looked for: each k
    is a search of its own.
    A k that breaks the model is over the limit.
    Raises UserError if one block is too much, or if k holds and k + 1 is too many sets to measure.
    """
    before = context.passes
    costs: dict[int, float] = {}
    choices: dict[int, Choice] = {}

    def within(k: int) -> bool:
        costs[k] = math.inf
        with contextlib.suppress(NotFiniteError):  # broken without so many: over any limit
            choices[k] = choose(context, method, k, rerank)
            costs[k] = cost_of(context, limit, choices[k].dropped)
        return costs[k] <= limit.value

    if not within(1):
        cost = "breaks the model" if math.isinf(costs[1]) else f"costs {limit.text(costs[1])}"
        raise UserError(
            f"already one block {cost}, over the limit of {limit.text(limit.value)}; "
            "allow more, or keep the model dense"
        )
    low, high = 1, context.num_blocks  # low holds; high does not, or cannot be measured, or is too many to drop
    step = 1
    unknown: dict[int, TooManySetsError] = {}
    while high - low > 1:
        k = min(low + step, (low + high) // 2 if high < context.num_blocks else high - 1)
        try:
            holds = within(k)
        except TooManySetsError as error:
            holds, unknown[k] = False, error
        if holds:
            low, step = k, step * 2
        else:
            high = k
    if high in unknown:
        raise UserError(f"dropping {low} costs {limit.text(costs[low])}, within the limit; of {high} {unknown[high]}")
    return Within(choices[low], costs[low], costs.get(low + 1), context.passes - before)


def cost_of(context: Context, limit: Limit, dropped: Dropped) -> float:
    """Return what leaving out `dropped` costs on the ranking text, in the limit's own unit."""
    dense, pruned = context.ranking.measure([(), dropped])  # as it is: what compares candidates has recall in it
    return pruned.kl_nats if limit.kind == "kl" else math.expm1(pruned.ce_nats - dense.ce_nats)
