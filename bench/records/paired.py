"""Ratios to the dense model, round by round: two rounds that were run one after the other are a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.records.schema import Paired, Ratio, Round

CONFIDENCE = 0.95


def ratio_of(values: Sequence[float], dense: Sequence[float]) -> Ratio:
    """Geometric mean of values[i] / dense[i], with Student's t interval of the mean log ratio."""
    from scipy.stats import t

    logs = [math.log(value / base) for value, base in zip(values, dense, strict=True)]
    count, mean = len(logs), sum(logs) / len(logs)
    if count < 2:
        return Ratio(ratio=math.exp(mean), low=None, high=None, pairs=count)
    deviation = math.sqrt(sum((log - mean) ** 2 for log in logs) / (count - 1))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
    return Ratio(ratio=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), pairs=count)


def paired(rounds: Sequence[Round], dense: Sequence[Round]) -> Paired:
    """How many times faster `rounds` are than the dense model's: above 1 is better for every field."""

    def more(name: str) -> Ratio:
        return ratio_of([getattr(r, name) for r in rounds], [getattr(r, name) for r in dense])

    def less(name: str) -> Ratio | None:
        own, base = [getattr(r, name).p50_ms for r in rounds], [getattr(r, name).p50_ms for r in dense]
        return ratio_of(base, own) if min(*own, *base) > 0 else None

    def sure(found: Ratio | None) -> Ratio:
        assert found is not None  # every request has a first token and an end
        return found

    return Paired(
        output_tokens_per_s=more("output_tokens_per_s"),
        total_tokens_per_s=more("total_tokens_per_s"),
        requests_per_s=more("requests_per_s"),
        ttft=sure(less("ttft")),
        tpot=less("tpot"),
        itl=less("itl"),
        e2e=sure(less("e2e")),
    )
