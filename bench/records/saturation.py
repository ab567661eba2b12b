"""Tell whether requests pile up: an open loop that asks for more than the engine can give.

The requests/s of a round do not tell it: after the last arrival the engine still answers, so that even an idle one
gives fewer than the rate. The number of requests in flight tells it. It settles where the engine keeps up, else it
grows as long as requests arrive.
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST_REQUESTS = 16  # of fewer, chance decides
PILES_UP = 0.2  # above it, growth is no chance (tests/bench/records/test_saturation.py); 1.5 times too many make 0.33


def growth(starts: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Return the share of the arriving requests that piles up; None for too few requests.

    It is 0 where the engine keeps up, and 1 - capacity / rate where not: the mean number in flight in the last quarter
    of the arrivals, less that of the second quarter, over the requests that arrived between the two. The first quarter
    is left out, as every engine fills up at first.

    starts: when each request was sent. seconds: from then to the end of its answer.
    """
    first, last = min(starts, default=0.0), max(starts, default=0.0)
    if len(starts) < LEAST_REQUESTS or last <= first:
        return None
    quarter = (last - first) / 4

    def in_flight(begin: float) -> float:
        end = begin + quarter
        spans = (min(start + took, end) - max(start, begin) for start, took in zip(starts, seconds, strict=True))
        return sum(max(0.0, span) for span in spans) / quarter

    return (in_flight(first + 3 * quarter) - in_flight(first + quarter)) / (len(starts) / 2)
