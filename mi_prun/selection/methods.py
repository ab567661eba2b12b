"""The methods by name. A method takes a context and a number of blocks k, and gives the blocks to drop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mi_prun.errors import UserError
from mi_prun.plan import Objective
from mi_prun.selection import baselines
from mi_prun.selection.context import Context, Selection
from mi_prun.selection.fast_block_select import fast_block_select
from mi_prun.selection.objective import best_sets, objective

Method = Callable[[Context, int], Selection]


def mi_prun(context: Context, k: int) -> Selection:
    """Fast-Block-Select on the measured segment costs (MI-PRUN, arXiv 2601.07212): no measurement of the loss."""
    return Selection(fast_block_select(context.analysis.segment_cost_nats, k).dropped)


def mi_optimum(context: Context, k: int) -> Selection:
    """The exact minimum of the same objective."""
    return Selection(best_sets(context.analysis.segment_cost_nats, k)[0][1])


METHODS: dict[str, Method] = {
    "mi-prun": mi_prun,
    "mi-optimum": mi_optimum,
    "tail": baselines.tail,
    "tail-but-last": baselines.tail_but_last,
    "random": baselines.random,
    "bi": baselines.bi,
    "angular": baselines.angular,
    "greedy-loss": baselines.greedy_loss,
    "exhaustive": baselines.exhaustive,
}


def method_named(name: str) -> Method:
    if name not in METHODS:
        raise UserError(f"--method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def candidates(context: Context, k: int, count: int) -> list[tuple[int, ...]]:
    """Up to `count` sets worth measuring: Fast-Block-Select's, the best by J, and those of the cheap scores."""
    costs = context.analysis.segment_cost_nats
    proposed = [method(context, k).dropped for method in (mi_prun, baselines.bi, baselines.angular)]
    proposed += [dropped for _, dropped in best_sets(costs, k, count)]
    return list(dict.fromkeys(proposed))[:count]


def rerank(context: Context, k: int, count: int) -> Selection:
    """The candidate with the least KL(dense || pruned) on the ranking text, which was kept out of the scoring."""
    evaluator = context.ranking
    before = evaluator.passes
    sets = candidates(context, k, count)
    losses = evaluator.measure(sets)
    best = min(zip(losses, sets, strict=True), key=lambda pair: pair[0].kl_nats)[1]
    return Selection(best, evaluator.passes - before)


@dataclass(frozen=True)
class Choice:
    selection: Selection
    objective: Objective


def choose(context: Context, method: str, k: int, rerank_count: int) -> Choice:
    """Choose k blocks; says how far J of the choice is from its least value."""
    if method == "mi-prun" and rerank_count > 0:
        selection = rerank(context, k, rerank_count)
    else:
        selection = method_named(method)(context, k)
    costs = context.analysis.segment_cost_nats
    best, best_dropped = best_sets(costs, k)[0]
    return Choice(
        selection,
        Objective(chosen_nats=objective(costs, selection.dropped), optimum_nats=best, optimum_dropped=best_dropped),
    )
