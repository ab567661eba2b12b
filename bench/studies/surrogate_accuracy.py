"""Measure how well the default's surrogate ranks sets that it has not seen, beside what it is made of.

    python -m bench.studies.surrogate_accuracy MODEL --calibration books.txt -k 6 \\
        >> bench/published/surrogate/accuracy.jsonl

Hundreds of sets of k blocks are measured on the text that candidates are first measured on: the low sets of the
quadratic of single removals, and all that differ in one block from the best of the default's candidates. Those that the
surrogate learns from are left out. The others are ranked by its prediction from nothing (the quadratic alone), from the
default's candidates, and from the neighbours of one, two and three of them as well. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.records.machine import commit, this_machine, versions
from mi_prun.analysis.analysis import read_analysis
from mi_prun.analysis.analyze import analyze
from mi_prun.console import progress, run_command
from mi_prun.errors import UserError
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.quality.evaluator import Dropped
from mi_prun.selection.context import Context
from mi_prun.selection.hybrid import ROUNDS, few_windows, gram_of, ranked_sets
from mi_prun.selection.methods import METHODS
from mi_prun.selection.quadratic import energy
from mi_prun.selection.race import first_windows
from mi_prun.selection.surrogate import corrected, neighbours
from mi_prun.settings import AnalyzeSettings

LOW = 200  # sets of the quadratic
BEST, TOP, SHORT_LIST = 150, 10, 24  # sets that the ranks are of; those to be found; among so many


def swaps(dropped: Dropped, num_blocks: int) -> list[Dropped]:
    """Return all sets that differ from `dropped` in one block."""
    kept = [block for block in range(num_blocks) if block not in dropped]
    return [tuple(sorted({*dropped, new} - {old})) for old in dropped for new in kept]


def figures(predicted: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, float]:
    """Say how well a prediction ranks measured sets.

    rank_correlation: Spearman's, over the BEST sets by measured loss. found: of the TOP best, among the SHORT_LIST that
    are predicted to be the best. gap_nats: what the best of those lacks to the best of all.
    """
    order = np.argsort(values, kind="stable")[:BEST]
    ranks = np.argsort(np.argsort(predicted[order], kind="stable"))
    listed = np.argsort(predicted, kind="stable")[:SHORT_LIST]
    return {
        "rank_correlation": round(float(np.corrcoef(ranks, np.arange(len(order)))[0, 1]), 3),
        "found": len(set(order[:TOP].tolist()) & set(listed.tolist())),
        "gap_nats": round(float(values[listed].min() - values.min()), 5),
    }


def accuracy(context: Context, k: int) -> dict[str, Any]:
    """Rank sets that were not measured before by each surrogate, and compare with their measured losses."""
    evaluator, gram = context.screening, gram_of(context)
    first, few, length = first_windows(context), few_windows(context), evaluator.windows.shape[1] - 1
    candidates = METHODS["hybrid"].propose(context, k, METHODS["hybrid"].candidates(context.num_blocks, k))
    of_candidates = context.values(evaluator.by_window(candidates, windows=first))
    best = [candidates[i] for i in np.argsort(of_candidates, kind="stable")[:ROUNDS]]
    low = ranked_sets(context, gram, k, LOW)
    near = [dropped for leader in best for dropped in swaps(leader, context.num_blocks)]
    sets = [dropped for dropped in dict.fromkeys([*low, *near]) if dropped not in candidates]
    if len(sets) < SHORT_LIST:
        raise UserError(f"-k {k}: {len(sets)} sets are left to rank, fewer than {SHORT_LIST}; take a k nearer to L/2")
    with progress("measuring", len(sets), "sets") as advance:
        by_window = evaluator.by_window(
            sets, lambda tokens: advance(tokens / (first * evaluator.windows.shape[1])), windows=first
        )
    values = context.values(by_window) / length
    by_surrogate = {"quadratic": figures(gram.predict(sets, "kl"), values)}
    for rounds in range(ROUNDS + 1):
        beside = [dropped for leader in best[:rounds] for dropped in neighbours(leader, context.num_blocks)]
        measured = list(dict.fromkeys([*beside, *candidates]))
        losses = context.values(evaluator.by_window(measured, windows=few)) / length
        label = "candidates" + (f" and neighbours of {rounds}" if rounds else "")
        linear, pair = corrected(gram, measured, losses)
        np.fill_diagonal(pair, 0.0)
        by_surrogate[label] = figures(np.array([energy(linear, pair, dropped) for dropped in sets]), values)
    return {"sets": len(sets), "tokens": first * evaluator.windows.shape[1], "surrogate": by_surrogate}


def main() -> None:
    """Analyse the text, rank the sets, and print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", help="of the model in the record; default: its folder's")
    parser.add_argument("--calibration", required=True, help="of `mi-prun analyze`")
    parser.add_argument("-k", type=int, required=True, help="blocks to drop")
    parser.add_argument("--tokens", type=int, default=AnalyzeSettings.scoring_tokens, help="of `analyze`")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    def run() -> None:
        folder = open_model(options.model)
        if not 1 <= options.k < folder.num_blocks:
            raise UserError(
                f"-k must be in 1..{folder.num_blocks - 1} for a model of {folder.num_blocks} blocks, got {options.k}"
            )
        settings = AnalyzeSettings(
            sources=(options.calibration,),
            scoring_tokens=options.tokens,
            held_out_tokens=1,
            window_tokens=options.window,
            seed=options.seed,
            device=options.device,
            dtype=options.dtype,
        )
        load = cache(lambda: load_on(folder, options.device, options.dtype))
        with tempfile.TemporaryDirectory() as place:
            analyze(folder, Path(place) / "analysis", settings, load=load)
            analysis = read_analysis(Path(place) / "analysis")
        record = {
            "model": options.name or folder.path.resolve().name,
            "calibration": Path(options.calibration).name,
            "num_blocks": folder.num_blocks,
            "k": options.k,
            "seed": options.seed,
            **accuracy(Context(analysis, load, options.seed), options.k),
            "machine": this_machine().model_dump(),
            "versions": versions(),
            "commit": commit(),
        }
        print(json.dumps(record))

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
