"""Several texts with weights: how they are named, and in what order their windows take turns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mi_prun.errors import UserError
from mi_prun.settings import SELF
from mi_prun.text.text_source import path_and_field, text_source


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
        weight = _weight(number)
        path, field = path_and_field(text)
        # `rows.jsonl:FIELD=2` has a weight, `rows.jsonl:a=b` names a field.
        if not equals or (path.is_file() and (field is None or math.isnan(weight))):
            sources.append(WeightedSource(text))
            continue
        if not 0 < weight < math.inf or not name:
            raise UserError(f"--calibration {text}: the weight must be a number over 0, got {number!r}")
        sources.append(WeightedSource(name, weight))
    if len({source.name for source in sources}) < len(sources):
        raise UserError("--calibration names a text twice; give it a weight instead: TEXT=2")
    return tuple(sources)


def _weight(number: str) -> float:
    try:
        return float(number)
    except ValueError:
        return math.nan


def text_files(texts: Sequence[str]) -> list[Path]:
    """Return the files that are read for these sources."""
    return [path_and_field(source.name)[0] for source in parse_sources(texts) if source.name != SELF]


def check_sources(texts: Sequence[str]) -> list[str]:
    """Return the names of sources. Raises UserError for one that cannot be read, before a model is loaded."""
    names = [source.name for source in parse_sources(texts)]
    for name in names:
        if name != SELF:
            text_source(name)
    return names


def names_of(sources: Sequence[tuple[str, float]]) -> str:
    """Return the names of sources for records, with their weights where there are several."""
    return ", ".join(f"{name} ({weight:g})" if len(sources) > 1 else name for name, weight in sources)


def turns(weights: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Yield without end which source the next window comes from, and the window's number in it.

    It is the source that is most behind its share. Where the weights are the windows that each has, all are used up
    together.
    """
    taken = [0] * len(weights)
    for count in itertools.count(1):
        share = count / sum(weights)
        due = [weight * share - own for weight, own in zip(weights, taken, strict=True)]
        source = due.index(max(due))
        yield source, taken[source]
        taken[source] += 1
