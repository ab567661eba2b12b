"""How much text candidates are ranked on, so that a choice takes minutes on a CPU.

An analysis holds as much ranking text as an accelerator measures in minutes. A CPU does a thousandth of that. So it
ranks a model past some ten million parameters on less text, in shorter windows. Passages count more than their length,
but not down to any: what a set of blocks does to the use of a long context is not seen in a short window.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from mi_prun.analysis.analysis import Analysis

CPU_FLOP = 1.6e13  # of a choice: some three minutes of two cores
PASSES = 8  # over the ranking text, about, that the default takes for a fifth of 30 blocks
LEAST_TOKENS = 4_096
LEAST_WINDOWS, SHORTEST_WINDOW = 8, 512


def ranking_tokens(parameters: int, device: torch.device, there: int) -> int:
    """Return how many of the `there` tokens of ranking text to measure on."""
    if device.type != "cpu":
        return there
    return min(there, max(LEAST_TOKENS, int(CPU_FLOP / (2 * parameters * PASSES))))


def with_short_ranking(analysis: Analysis, device: torch.device) -> Analysis:
    """Return the analysis with as much of its ranking text as the device measures in minutes.

    Fewer windows than LEAST_WINDOWS are cut, where there are more of them to take the first pieces of. A window begins
    with BOS where the model wants one, and so does its first piece.
    """
    length = analysis.ranking.shape[1]
    tokens = ranking_tokens(analysis.record.dense.num_parameters, device, analysis.ranking.size)
    if tokens == analysis.ranking.size:
        return analysis
    rows = len(analysis.ranking)
    while tokens // length < LEAST_WINDOWS and length >= 2 * SHORTEST_WINDOW and rows * (length // 2) >= tokens:
        length //= 2
    count = tokens // length
    if count < LEAST_WINDOWS:  # few windows are counted up: a fraction of one is much
        count = math.ceil(tokens / length)
    return dataclasses.replace(analysis, ranking=analysis.ranking[:count, :length])
