"""The default: several scores propose, the loss decides.

1. Propose. The Fisher Gram of the logits (single removals on an eighth of the screening text) gives the low sets of its
   quadratic; the analysis gives Fast-Block-Select's set, the exact optimum of J, and those of the cosine and the angle.
2. Learn. A third of the candidates are measured on a quarter of the screening text. Then, ROUNDS times (more often
   beyond few blocks): neighbours of the best set, which drop one block more or one less, are measured on as little text
   as the Gram; a surrogate learns from all that was measured what the quadratic got wrong; its low sets are the next
   candidates (`surrogate.py`).
3. Decide. Successive halving on more and more of the text (`race.py`).
"""

from __future__ import annotations

import math

import numpy as np

from mi_prun.selection import baselines
from mi_prun.selection.budget import thrift
from mi_prun.selection.context import Context
from mi_prun.selection.fast_block_select import fast_block_select
from mi_prun.selection.logit_gram import LogitGram, all_singles, logit_gram
from mi_prun.selection.objective import Dropped, best_sets
from mi_prun.selection.quadratic import low_states
from mi_prun.selection.race import first_windows, share_of
from mi_prun.selection.surrogate import corrected, neighbours

GRAM_SHARE = 1 / 8  # of the screening text, for the Gram and for neighbours
FIRST_SHARE = 1 / 3  # of the candidates, before anything was learned
ROUNDS = 3  # up to few blocks, in proportion to k beyond them
FEW_BLOCKS = 6  # or a quarter of them, where that is less


def gram_of(context: Context) -> LogitGram:
    """The Gram on the first GRAM_SHARE of the screening text; the dense model and each single removal are counted."""
    evaluator, windows = context.screening, few_windows(context)
    if context.extra.first("logit gram"):
        evaluator.count([(), *all_singles(context.num_blocks)], windows)
    return context.derive("logit gram", lambda: logit_gram(evaluator, windows=windows))


def beyond_few(num_blocks: int, k: int) -> float:
    """k over a quarter of the blocks, or over six where that is less; not under 1."""
    return max(1.0, k / min(FEW_BLOCKS, num_blocks / 4))


def few_windows(context: Context) -> int:
    return share_of(context.screening.windows, GRAM_SHARE)


def low_sets(context: Context, gram: LogitGram, criterion: str, k: int, count: int) -> list[Dropped]:
    """The sets of k blocks with the least predicted loss, best first."""
    return [dropped for _, dropped in low_states(gram.linear(criterion), gram.gram, k, count, context.seed)]


def ranked_sets(context: Context, gram: LogitGram, k: int, count: int) -> list[Dropped]:
    """The low sets by KL and by the context's criterion, in turn, where they are two."""
    criteria = dict.fromkeys(("kl", context.criterion))
    low = (low_sets(context, gram, criterion, k, count) for criterion in criteria)
    return [dropped for together in zip(*low, strict=False) for dropped in together]


def analysis_sets(context: Context, k: int) -> list[Dropped]:
    """What the scores of the one pass propose."""
    costs = context.analysis.segment_cost_nats
    found = [fast_block_select(costs, k).dropped, best_sets(costs, k)[0][1]]
    return found + [method(context, k, 1)[0] for method in (baselines.bi, baselines.angular, baselines.tail_but_last)]


def gram_only(context: Context, k: int, count: int) -> list[Dropped]:
    """The low sets of the logit Gram's quadratic: L/2 forward passes over an eighth of the screening text."""
    return low_sets(context, gram_of(context), "kl", k, count)


def hybrid(context: Context, k: int, count: int) -> list[Dropped]:
    """MI, cosine, angle and the Fisher Gram of the logits propose; a surrogate learns from what was measured."""
    gram, evaluator = gram_of(context), context.screening
    count = min(count, math.comb(context.num_blocks, k))
    ranked = ranked_sets(context, gram, k, count)
    first = max(1, round(FIRST_SHARE * count))
    chosen = list(dict.fromkeys([ranked[0], *analysis_sets(context, k), *ranked[1:]]))[:first]
    near: list[Dropped] = []
    visited: list[Dropped] = []
    rounds = round(ROUNDS * beyond_few(context.num_blocks, k) * thrift(context))
    for rounds_left in range(rounds, 0, -1):
        more = (count - len(chosen)) // rounds_left
        if not more:
            continue
        values = context.values(evaluator.by_window(chosen, windows=first_windows(context)))
        best = next((chosen[i] for i in np.argsort(values, kind="stable") if chosen[i] not in visited), None)
        if best is not None:
            visited.append(best)
            near += neighbours(best, context.num_blocks)
        measured = list(dict.fromkeys([*near, *chosen]))
        losses = context.values(evaluator.by_window(measured, windows=few_windows(context)))
        linear, pair = corrected(gram, measured, losses / (evaluator.windows.shape[1] - 1))
        lowest = low_states(linear, pair, k, len(chosen) + more, context.seed)
        chosen += [dropped for _, dropped in lowest if dropped not in chosen][:more]
    return chosen
