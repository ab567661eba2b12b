"""The default: several scores propose, the loss decides.

1. Propose. The Fisher Gram of the logits (single removals on an eighth of the screening text) gives the low sets of its
   quadratic; the analysis gives Fast-Block-Select's set, the exact optimum of J, and those of the cosine and the angle.
   Where more than a quarter of the blocks go, so does a greedy path on little text: single removals say little of what
   a block does when so many others are missing.
2. Learn. Half of the candidates are measured on a quarter of the screening text; a surrogate learns what the quadratic
   got wrong and proposes the others, sets one swap away from the best among them.
3. Decide. Successive halving on more and more of the text (`race.py`).
"""

from __future__ import annotations

import numpy as np

from mi_prun.selection import baselines
from mi_prun.selection.context import Context
from mi_prun.selection.fast_block_select import fast_block_select
from mi_prun.selection.logit_gram import LogitGram, all_singles, logit_gram
from mi_prun.selection.objective import Dropped, best_sets
from mi_prun.selection.quadratic import low_states
from mi_prun.selection.race import first_windows
from mi_prun.selection.surrogate import promise, swaps

GRAM_SHARE = 1 / 8  # of the screening text
PATH_FROM = 1 / 4  # of the blocks: where more go, the greedy path proposes too
POOL = 256  # low sets of the quadratic that the surrogate may choose from
ROUNDS = 3
LEADERS = 3  # measured sets whose swaps are looked at


def gram_of(context: Context) -> LogitGram:
    """The Gram on the first GRAM_SHARE of the screening text; the dense model and each single removal are counted."""
    evaluator, windows = context.screening, few_windows(context)
    evaluator.count([(), *all_singles(context.num_blocks)], windows)
    return context.derive("logit gram", lambda: logit_gram(evaluator, windows=windows))


def few_windows(context: Context) -> int:
    return max(1, round(GRAM_SHARE * len(context.screening.windows)))


def greedy_path(context: Context, k: int) -> list[Dropped]:
    """k blocks, one after the other: the one whose absence raises the loss least, on the text that every candidate is
    measured on, or by KL, which is less noisy, on the Gram's. The last round's best sets.
    """
    windows = first_windows(context) if context.criterion == "ce" else few_windows(context)
    best: list[Dropped] = [()]
    for _ in range(k):
        sets = baselines.one_more(best[0], context.num_blocks)
        values = context.values(context.screening.by_window(sets, windows=windows))
        best = [sets[i] for i in np.argsort(values, kind="stable")[:LEADERS]]
    return best


def low_sets(context: Context, gram: LogitGram, criterion: str, k: int, count: int) -> list[Dropped]:
    """The sets of k blocks with the least predicted loss, best first."""
    return [dropped for _, dropped in low_states(gram.linear(criterion), gram.gram, k, count, context.seed)]


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
    gram = gram_of(context)
    low = {criterion: low_sets(context, gram, criterion, k, POOL) for criterion in ("kl", context.criterion)}
    ranked = list(dict.fromkeys(dropped for pair in zip(*low.values(), strict=True) for dropped in pair))
    if count < 2:
        return ranked[:1]
    half = max(1, (count + 1) // 2)
    path = greedy_path(context, k) if k > PATH_FROM * context.num_blocks else []
    chosen = list(dict.fromkeys([*path, ranked[0], *analysis_sets(context, k), *ranked[1:]]))[:half]
    for number in range(ROUNDS, 0, -1):
        by_window = context.screening.by_window(chosen, windows=first_windows(context))
        values = context.values(by_window) / (context.screening.windows.shape[1] - 1)
        leaders = [chosen[i] for i in np.argsort(values, kind="stable")[:LEADERS]]
        pool = [*ranked, *(near for leader in leaders for near in swaps(leader, context.num_blocks))]
        pool = [dropped for dropped in dict.fromkeys(pool) if dropped not in set(chosen)]
        if not pool:
            break
        residuals = values - gram.predict(chosen, "kl")
        guess = promise(chosen, residuals, pool, gram.predict(pool, "kl"), context.num_blocks)
        step = (count - len(chosen)) // number
        chosen += [pool[i] for i in np.argsort(guess, kind="stable")[:step]]
    return chosen
