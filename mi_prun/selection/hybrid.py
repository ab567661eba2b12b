"""The default: several scores propose, the loss decides.

1. Propose. The Fisher Gram of the logits (single removals on an eighth of the screening text) gives the low sets of its
   quadratic. The analysis gives Fast-Block-Select's set, the exact optimum of J, and the set of the cosine. Every run
   of k blocks is measured on as little text as the Gram; the BEST_RUNS best ones are proposed.
2. Learn. A third of the candidates are measured on a quarter of the screening text. Then there are ROUNDS rounds, more
   of them beyond few blocks. In each:
   - The neighbours of the best set, which drop one block more or one less, are measured on as little text as the Gram.
   - A surrogate learns from all measured sets what the quadratic got wrong (`surrogate.py`).
   - Its low sets are the next candidates.
3. Decide. Successive halving measures the candidates on more and more of the text (`race.py`).

The end of each window repeats its beginning, so that blocks which copy from the context count (`text/recall.py`).
"""

from __future__ import annotations

import math

import numpy as np

from mi_prun.console import progress
from mi_prun.quality.evaluator import Dropped, Evaluator
from mi_prun.selection import baselines
from mi_prun.selection.budget import thrift
from mi_prun.selection.context import Context
from mi_prun.selection.fast_block_select import fast_block_select
from mi_prun.selection.logit_gram import LogitGram, all_singles, logit_gram
from mi_prun.selection.objective import best_sets
from mi_prun.selection.quadratic import low_states
from mi_prun.selection.race import first_windows, share_of
from mi_prun.selection.surrogate import corrected, neighbours

GRAM_SHARE = 1 / 8  # of the screening text, for the Gram and for neighbours
FIRST_SHARE = 1 / 3  # of the candidates: those that come before anything is learned
BEST_RUNS = 2
ROUNDS = 3  # up to few blocks, in proportion to k beyond them
FEW_BLOCKS = 6  # or a quarter of them, where that is less


def gram_of(context: Context) -> LogitGram:
    """Return the Gram on the first GRAM_SHARE of the screening text; count the dense model and each single removal."""
    evaluator, windows = context.screening, few_windows(context)
    if context.extra.first("logit gram"):
        evaluator.count([(), *all_singles(context.num_blocks)], windows)
    return context.derive("logit gram", lambda: _measured_gram(evaluator, windows))


def _measured_gram(evaluator: Evaluator, windows: int) -> LogitGram:
    tokens = windows * evaluator.windows.shape[1] * evaluator.model.num_blocks
    with progress("removing single blocks", tokens, "tokens") as advance:
        return logit_gram(evaluator, windows=windows, advance=advance)


def beyond_few(num_blocks: int, k: int) -> float:
    """Return k over a quarter of the blocks, or over six where that is less; at least 1."""
    return max(1.0, k / min(FEW_BLOCKS, num_blocks / 4))


def few_windows(context: Context) -> int:
    """Return how many windows the Gram and neighbours are measured on."""
    return share_of(context.screening.windows, GRAM_SHARE)


def low_sets(context: Context, gram: LogitGram, criterion: str, k: int, count: int) -> list[Dropped]:
    """Return the sets of k blocks with the least predicted loss, best first."""
    return [dropped for _, dropped in low_states(gram.linear(criterion), gram.gram, k, count, context.seed)]


def ranked_sets(context: Context, gram: LogitGram, k: int, count: int) -> list[Dropped]:
    """Return the low sets by KL and by the context's criterion in turn, or by KL alone where that is the criterion."""
    criteria = dict.fromkeys(("kl", context.criterion))
    low = (low_sets(context, gram, criterion, k, count) for criterion in criteria)
    return [dropped for together in zip(*low, strict=False) for dropped in together]


def mi_sets(context: Context, k: int) -> list[Dropped]:
    """Return Fast-Block-Select's set and that of the exact minimum of J."""
    costs = context.analysis.segment_cost_nats
    return [fast_block_select(costs, k).dropped, best_sets(costs, k)[0][1]]


def bi_sets(context: Context, k: int) -> list[Dropped]:
    """Return the set of the cosine."""
    return baselines.bi(context, k, 1)


def run_sets(context: Context, k: int) -> list[Dropped]:
    """Return the BEST_RUNS runs of k blocks with the least loss on as little text as the Gram's; all are measured.

    A run often costs less than its blocks do one by one, and the Gram, made of single removals, does not see it.
    """
    together = baselines.windows(context.num_blocks, k)
    values = context.values(context.screening.by_window(together, windows=few_windows(context), may_break=True))
    return [together[place] for place in np.argsort(values, kind="stable")[:BEST_RUNS]]


PROPOSERS = {"mi": mi_sets, "bi": bi_sets, "runs": run_sets}  # the study leaves one out


def proposed_sets(context: Context, k: int) -> list[Dropped]:
    """Return what is proposed beside the Gram's sets."""
    return [dropped for propose in PROPOSERS.values() for dropped in propose(context, k)]


def gram_only(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the low sets of the logit Gram's quadratic: L/2 forward passes over an eighth of the screening text."""
    return low_sets(context, gram_of(context), "kl", k, count)


def hybrid(context: Context, k: int, count: int) -> list[Dropped]:
    """Let MI, cosine, runs and the Fisher Gram of the logits propose; a surrogate learns from what is measured."""
    gram, evaluator = gram_of(context), context.screening
    count = min(count, math.comb(context.num_blocks, k))
    ranked = ranked_sets(context, gram, k, count)
    if count == 1:
        return ranked[:1]  # nothing beside it would be kept
    first = max(1, round(FIRST_SHARE * count))
    chosen = list(dict.fromkeys([ranked[0], *proposed_sets(context, k), *ranked[1:]]))[:first]
    near = baselines.windows(context.num_blocks, k)
    visited: list[Dropped] = []
    rounds = round(ROUNDS * beyond_few(context.num_blocks, k) * thrift(context))
    with progress("learning from candidates", rounds, "rounds") as advance:
        for rounds_left in range(rounds, 0, -1):
            more = (count - len(chosen)) // rounds_left
            if not more:
                continue
            values = context.values(evaluator.by_window(chosen, windows=first_windows(context), may_break=True))
            best = next((chosen[i] for i in np.argsort(values, kind="stable") if chosen[i] not in visited), None)
            if best is not None:
                visited.append(best)
                near += neighbours(best, context.num_blocks)
            measured = list(dict.fromkeys([*near, *chosen]))
            losses = context.values(evaluator.by_window(measured, windows=few_windows(context), may_break=True))
            learned = np.isfinite(losses)  # nothing is learned from a set that breaks the model
            measured = [dropped for dropped, finite in zip(measured, learned, strict=True) if finite]
            linear, pair = corrected(gram, measured, losses[learned] / (evaluator.windows.shape[1] - 1))
            lowest = low_states(linear, pair, k, len(chosen) + more, context.seed)
            chosen += [dropped for _, dropped in lowest if dropped not in chosen][:more]
            advance(1)
    return chosen
