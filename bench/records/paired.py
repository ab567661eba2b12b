"""Take ratios to the dense model round by round: two rounds that were run one after the other are a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.records.schema import Paired, Ratio, Round

CONFIDENCE = 0.95
NO_SPREAD = 1e-12  # of log ratios that are the same; scipy would give no interval


def ratio_of(values: Sequence[float], dense: Sequence[float]) -> Ratio:
    """Return the geometric mean of values[i] / dense[i], with Student's t interval of the mean log ratio."""
    from scipy.stats import ttest_1samp

    logs = [math.log(value / base) for value, base in zip(values, dense, strict=True)]
    count, mean = len(logs), sum(logs) / len(logs)
    if count < 2:
        return Ratio(ratio=math.exp(mean), low=None, high=None, pairs=count)
    if max(logs) - min(logs) < NO_SPREAD:
        return Ratio(ratio=math.exp(mean), low=math.exp(min(logs)), high=math.exp(max(logs)), pairs=count)
    interval = ttest_1samp(logs, 0.0).confidence_interval(CONFIDENCE)
    return Ratio(ratio=math.exp(mean), low=math.exp(interval.low), high=math.exp(interval.high), pairs=count)


def paired(rounds: Sequence[Round], dense: Sequence[Round]) -> Paired:
    """Say how many times faster `rounds` are than the dense model's. Above 1 is better for every field."""

    def more(name: str) -> Ratio:
        return ratio_of([getattr(r, name) for r in rounds], [getattr(r, name) for r in dense])

    def less(name: str) -> Ratio | None:
        own, base = [getattr(r, name).p50_ms for r in rounds], [getattr(r, name).p50_ms for r in dense]
        return ratio_of(base, own) if min(*own, *base) > 0 else None

    def sure(ratio: Ratio | None) -> Ratio:
        assert ratio is not None  # every request has a first token and an end
        return ratio

    return Paired(
        output_tokens_per_s=more("output_tokens_per_s"),
        total_tokens_per_s=more("total_tokens_per_s"),
        requests_per_s=more("requests_per_s"),
        ttft=sure(less("ttft")),
        tpot=less("tpot"),
        itl=less("itl"),
        e2e=sure(less("e2e")),
    )
