"""Several texts with weights: how they are named, and in what order their windows take turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mi_prun.errors import UserError
from mi_prun.text.text_source import path_and_field


@dataclass(frozen=True)
class WeightedSource:
    """A source as `text_source` takes it, and its share among the others."""

    name: str
    weight: float = 1.0


def parse_sources(texts: Sequence[str]) -> tuple[WeightedSource, ...]:
    """Read `TEXT` or `TEXT=WEIGHT`, each. A file whose own name has a `=` is one text.

    Raises UserError for a weight that is no number over 0, and for a text that is named twice.
    """
    sources = []
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals or path_and_field(text)[0].is_file():
            sources.append(WeightedSource(text))
            continue
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf or not name:
            raise UserError(f"--calibration {text}: the weight must be a number over 0, got {number!r}")
        sources.append(WeightedSource(name, weight))
    if len({source.name for source in sources}) < len(sources):
        raise UserError("--calibration names a text twice; give it a weight instead: TEXT=2")
    return tuple(sources)


def names_of(sources: Sequence[tuple[str, float]]) -> str:
    """Return the names of sources for records, with their weights where there are several."""
    return ", ".join(f"{name} ({weight:g})" if len(sources) > 1 else name for name, weight in sources)


def whose_turn(weights: Sequence[float], taken: Sequence[int]) -> int:
    """Return the source that the next window comes from: the one that is most behind its share.

    taken: windows of each so far. Where the weights are the windows that each has, all are used up together.
    """
    share = (sum(taken) + 1) / sum(weights)
    due = [weight * share - count for weight, count in zip(weights, taken, strict=True)]
    return due.index(max(due))
