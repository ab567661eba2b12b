"""The methods by name. Each proposes sets of k blocks, best first; where several are asked for, the loss decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mi_prun.analysis.analysis import Analysis
from mi_prun.architecture.architecture import Config, check_reducible, num_blocks
from mi_prun.errors import UserError
from mi_prun.plan.plan import Objective
from mi_prun.quality.evaluator import Dropped
from mi_prun.selection import baselines
from mi_prun.selection.budget import most_passes
from mi_prun.selection.cbo import cbo, cbo_fisher
from mi_prun.selection.context import Context
from mi_prun.selection.fast_block_select import fast_block_select
from mi_prun.selection.hybrid import beyond_few, gram_only, hybrid
from mi_prun.selection.objective import best_sets, objective
from mi_prun.selection.race import race
from mi_prun.selection.segment_loss import segment_loss

MOST_CANDIDATES = 256
MOST_ASKED_FOR = 10_000  # by --rerank

Propose = Callable[[Context, int, int], list[Dropped]]


@dataclass(frozen=True)
class Method:
    """A way to choose blocks.

    propose: (context, k, count) -> up to `count` sets of k blocks, best first.
    rerank: how many of them are compared by their measured loss, unless the user says otherwise.
    grows: whether more are compared where more than a quarter of the blocks go, or more than six. There are more sets
    then, and each is cheaper to measure.
    needs_analysis: whether the one pass of `mi-prun analyze` is a part of its cost.
    single: whether it proposes one set, so that there is nothing to compare.
    runs: (L, k) -> the sets that it may take, of a method that drops neighbours. Such a set can keep the order of kinds
    where blocks alternate.
    """

    propose: Propose
    rerank: int = 0
    needs_analysis: bool = False
    grows: bool = False
    single: bool = False
    runs: Callable[[int, int], list[Dropped]] | None = None

    def candidates(self, num_blocks: int, k: int) -> int:
        """Return how many sets of k blocks to compare. Their cost then grows about as a tenth of greedy-loss's."""
        growth = beyond_few(num_blocks, k) ** 3 if self.grows else 1.0
        return min(round(self.rerank * growth), max(self.rerank, MOST_CANDIDATES))

    @property
    def summary(self) -> str:
        """What the method does, in one line for the user."""
        return (self.propose.__doc__ or "").strip().splitlines()[0]


def mi_prun(context: Context, k: int, count: int) -> list[Dropped]:
    """Run Fast-Block-Select on importance -MI(h_i; h_j), as published (arXiv 2601.07212); then the lowest sets by J.

    J counts nats lost and not -MI: that has no zero, so a sum over more runs would be less for that alone. With the
    estimator `reading` a segment's nats lost are a constant less its MI, so both rank segments alike.
    """
    first = published(context.analysis, k)
    lowest = mi_optimum(context, k, count) if count > 1 else []
    return list(dict.fromkeys([first, *lowest]))[:count]


def published(analysis: Analysis, k: int) -> Dropped:
    """Return the set that Fast-Block-Select takes by the paper's importance."""
    return fast_block_select(-analysis.segment_mi_nats, k).dropped


def mi_optimum(context: Context, k: int, count: int) -> list[Dropped]:
    """Take the exact minimum of J, nats lost over the runs dropped; then the next lowest sets."""
    return [dropped for _, dropped in best_sets(context.analysis.segment_cost_nats, k, count)]


METHODS: dict[str, Method] = {
    "hybrid": Method(hybrid, rerank=24, needs_analysis=True, grows=True),
    "mi-prun": Method(mi_prun, needs_analysis=True),
    "mi-optimum": Method(mi_optimum, needs_analysis=True),
    "logit-gram": Method(gram_only),
    "cbo": Method(cbo, rerank=8),
    "cbo-fisher": Method(cbo_fisher, rerank=8),
    "segment-loss": Method(segment_loss, rerank=8),
    "bi": Method(baselines.bi, needs_analysis=True),
    "angular": Method(baselines.angular, needs_analysis=True, runs=baselines.windows),
    "tail": Method(baselines.tail, single=True, runs=baselines.last),
    "tail-but-last": Method(baselines.tail_but_last, single=True, runs=baselines.last_but_one),
    "random": Method(baselines.random, single=True),
    "greedy-loss": Method(baselines.greedy_loss, single=True),
    "exhaustive": Method(baselines.exhaustive, single=True),
}


def check_possible(config: Config, method: str, wanted: int | tuple[int, ...] | None) -> None:
    """Refuse, before anything is measured, what cannot be written afterwards.

    wanted: the blocks themselves, or how many the method is to take; None: a limit says how many.
    """
    blocks = [(block,) for block in range(num_blocks(config))]
    runs = method_named(method).runs
    if isinstance(wanted, tuple):
        check_reducible(config, [wanted])
    elif runs is not None:
        check_reducible(config, blocks if wanted is None else runs(len(blocks), wanted))
    else:
        check_reducible(config, blocks, [name for name, other in METHODS.items() if other.runs])


def method_named(name: str, said: str = "--method") -> Method:
    """Return a method by its name. Raises UserError for an unknown one. said: what the user gave it by."""
    if name not in METHODS:
        raise UserError(f"{said} must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


@dataclass(frozen=True)
class Choice:
    """What a method chose, and what that cost.

    dropped: the set taken. candidates: how many sets were compared by their measured loss (0: none were).
    forward_passes: blocks x tokens evaluated beyond the analysis, over those of one pass of the dense model over the
    ranking text; a backward counts as two forwards.
    """

    dropped: Dropped
    candidates: int
    forward_passes: float
    objective: Objective


def choose(context: Context, method: str, k: int, rerank: int | None = None) -> Choice:
    """Choose k blocks: the best by measured loss of up to `rerank` proposed sets, or the first one proposed (0).

    rerank: None leaves the number to the method. If it `grows`, its cost is then limited (`budget.py`).
    The choice says how far its J is from the least one.
    """
    chooser = method_named(method)
    limited = rerank is None and chooser.grows
    rerank = chooser.candidates(context.num_blocks, k) if rerank is None else rerank
    check_choice(context.num_blocks, k, rerank)
    before = context.passes
    most = before + most_passes(context, k) - context.analysis.passes if limited else math.inf
    sets = chooser.propose(context, k, min(max(1, rerank), math.comb(context.num_blocks, k)))
    measured = len(sets) if rerank and len(sets) > 1 else 0
    dropped = race(context, sets, most)[0].dropped if measured else sets[0]
    return Choice(dropped, measured, context.passes - before, objective_of(context.analysis, dropped))


def objective_of(analysis: Analysis, dropped: Dropped) -> Objective:
    """Return J of a set, the least J for as many blocks, and J of Fast-Block-Select's set."""
    costs, k = analysis.segment_cost_nats, len(dropped)
    best, best_dropped = best_sets(costs, k)[0]
    return Objective(
        chosen_nats=objective(costs, dropped),
        optimum_nats=best,
        optimum_dropped=best_dropped,
        fbs_nats=objective(costs, published(analysis, k)),
    )


def check_choice(num_blocks: int, k: int, rerank: int) -> None:
    """Raise UserError for a number of blocks or of sets that cannot be."""
    if not 1 <= k < num_blocks:
        raise UserError(f"the number of blocks to drop must be in 1..{num_blocks - 1}, got {k}")
    check_rerank(rerank)


def check_rerank(rerank: int | None, said: str = "--rerank", method: str | None = None) -> None:
    """Raise UserError for a number of sets to compare that cannot be. said: what the user gave it by."""
    if rerank is not None and not 0 <= rerank <= MOST_ASKED_FOR:
        raise UserError(f"{said} must be in 0..{MOST_ASKED_FOR}, got {rerank}")
    if rerank and method is not None and METHODS[method].single:
        raise UserError(
            f"{said} {rerank}: the method {method} proposes one set, so there is none to compare; leave it out"
        )
