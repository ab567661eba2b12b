"""Live figures: what the last minutes of traffic looked like, for each arm, as time buckets in bounded memory.

Everything an arm answered is in them, failovers and explicit requests too: they say how the arms do now. A request is
in the bucket in which it ended. So the first buckets after a start, or after a burst, hold the quick answers only.
Nothing is tested here: what may be compared is the verdict's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mi_prun.artefact import Record
from serve.ab.verdict.event import ARM_FAULTS, Event, ShadowComparison
from serve.ab.verdict.quantiles import Quantiles

BUCKET_SECONDS = 10
BUCKETS = 60
NOW_SECONDS = 60


class LiveArm(Record):
    """An arm in a stretch of time. Rates are per second; quantiles are None where nothing was observed.

    requests: attempts that ended. errors: those the arm is to blame for. answer_tokens_per_s: of one answer, its first
    token's wait left out: how fast text appears.
    """

    requests: int
    errors: int
    requests_per_s: float
    output_tokens_per_s: float
    answer_tokens_per_s_p50: float | None
    ttft_s_p50: float | None
    ttft_s_p99: float | None
    itl_s_p50: float | None
    itl_s_p99: float | None


class LiveSeries(Record):
    """An arm by bucket: a column for each figure of `LiveArm`."""

    requests: tuple[int, ...]
    errors: tuple[int, ...]
    requests_per_s: tuple[float, ...]
    output_tokens_per_s: tuple[float, ...]
    answer_tokens_per_s_p50: tuple[float | None, ...]
    ttft_s_p50: tuple[float | None, ...]
    ttft_s_p99: tuple[float | None, ...]
    itl_s_p50: tuple[float | None, ...]
    itl_s_p99: tuple[float | None, ...]


class LiveShadow(Record):
    """Mirrored requests in all buckets. agreement: mean share of leading tokens that are the same, in [0, 1]."""

    compared: int
    failed: int
    agreement: float | None


class LiveFigures(Record):
    """Live figures of all arms.

    time_s: when each bucket starts, oldest first, Unix time; the one that is still filling is not among them.

    series: for each arm, one value a bucket. now: about the last `now_s` seconds, the filling bucket included.
    """

    bucket_s: int
    now_s: int
    time_s: tuple[int, ...]
    series: dict[str, LiveSeries]
    now: dict[str, LiveArm]
    shadow: LiveShadow


def _three_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


@dataclass
class ArmBucket:
    requests: int = 0
    errors: int = 0
    output_tokens: int = 0
    answer_tokens_per_s: Quantiles = field(default_factory=Quantiles)
    ttft_s: Quantiles = field(default_factory=Quantiles)
    itl_s: Quantiles = field(default_factory=Quantiles)

    def add(self, event: Event) -> None:
        self.requests += 1
        self.errors += event.outcome in ARM_FAULTS
        tokens, ttft_s = event.output_tokens or 0, event.ttft_s
        self.output_tokens += tokens
        self.itl_s.add(event.itl_s)
        if ttft_s is None or not event.streamed or event.status != 200:
            return  # without a stream the first byte is the whole answer; a refusal is none
        self.ttft_s.add((ttft_s,))
        if tokens > 1 and event.e2e_s > ttft_s:
            self.answer_tokens_per_s.add(((tokens - 1) / (event.e2e_s - ttft_s),))

    def merge(self, other: ArmBucket) -> None:
        self.requests += other.requests
        self.errors += other.errors
        self.output_tokens += other.output_tokens
        self.answer_tokens_per_s.merge(other.answer_tokens_per_s)
        self.ttft_s.merge(other.ttft_s)
        self.itl_s.merge(other.itl_s)

    def figures(self, seconds: float) -> LiveArm:
        return LiveArm(
            requests=self.requests,
            errors=self.errors,
            requests_per_s=round(self.requests / seconds, 3),
            output_tokens_per_s=round(self.output_tokens / seconds, 2),
            answer_tokens_per_s_p50=_three_digits(self.answer_tokens_per_s.quantile(0.5)),
            ttft_s_p50=_three_digits(self.ttft_s.quantile(0.5)),
            ttft_s_p99=_three_digits(self.ttft_s.quantile(0.99)),
            itl_s_p50=_three_digits(self.itl_s.quantile(0.5)),
            itl_s_p99=_three_digits(self.itl_s.quantile(0.99)),
        )


class Bucket:
    def __init__(self, arms: Sequence[str]) -> None:
        self.arms = {arm: ArmBucket() for arm in arms}
        self.compared = 0
        self.failed = 0
        self.agreement_sum = 0.0
        self._closed: dict[str, LiveArm] = {}

    def closed_figures(self, arm: str, seconds: float) -> LiveArm:
        """Return the figures of a bucket that nothing is added to any more: worked out once."""
        if arm not in self._closed:
            self._closed[arm] = self.arms[arm].figures(seconds)
        return self._closed[arm]


class LiveWindow:
    """The last minutes, by bucket: a listener of the proxy. Use it from one thread, as the proxy's event loop is.

    arms: those that are known; an event of another one is left out, so that nothing grows.
    """

    def __init__(
        self,
        arms: Sequence[str],
        *,
        bucket_s: int = BUCKET_SECONDS,
        buckets: int = BUCKETS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.arms = tuple(arms)
        self.bucket_s = bucket_s
        self.buckets = buckets
        self._clock = clock
        self._started = clock()
        self._ring: dict[int, Bucket] = {}  # by bucket number: Unix time over bucket_s

    def __call__(self, event: Event | ShadowComparison) -> None:
        """Count an event when it comes, not when its request began: a bucket that was shown stays as it was."""
        bucket = self._current()
        if isinstance(event, Event):
            if event.arm in bucket.arms:
                bucket.arms[event.arm].add(event)
        elif event.agreement is None:
            bucket.failed += 1
        else:
            bucket.compared += 1
            bucket.agreement_sum += event.agreement

    def figures(self) -> LiveFigures:
        filling = self._number()
        numbers = range(filling - self.buckets, filling)
        empty = Bucket(self.arms)
        shown = [self._ring.get(number, empty) for number in numbers]
        recent = range(filling + 1 - max(1, NOW_SECONDS // self.bucket_s), filling + 1)
        seconds = max(1.0, self._clock() - max(self._started, recent.start * self.bucket_s))
        everything = [*shown, self._ring.get(filling, empty)]
        compared = sum(bucket.compared for bucket in everything)
        return LiveFigures(
            bucket_s=self.bucket_s,
            now_s=NOW_SECONDS,
            time_s=tuple(number * self.bucket_s for number in numbers),
            series={arm: self._series(arm, shown) for arm in self.arms},
            now={arm: self._sum(arm, recent).figures(seconds) for arm in self.arms},
            shadow=LiveShadow(
                compared=compared,
                failed=sum(bucket.failed for bucket in everything),
                agreement=sum(bucket.agreement_sum for bucket in everything) / compared if compared else None,
            ),
        )

    def _series(self, arm: str, buckets: Sequence[Bucket]) -> LiveSeries:
        figures = [bucket.closed_figures(arm, self.bucket_s) for bucket in buckets]
        columns = {name: tuple(getattr(one, name) for one in figures) for name in LiveSeries.model_fields}
        return LiveSeries.model_construct(None, **columns)

    def _sum(self, arm: str, numbers: range) -> ArmBucket:
        total = ArmBucket()
        for number in numbers:
            if bucket := self._ring.get(number):
                total.merge(bucket.arms[arm])
        return total

    def _number(self) -> int:
        return int(self._clock() // self.bucket_s)

    def _current(self) -> Bucket:
        number = self._number()
        if number not in self._ring:
            self._ring[number] = Bucket(self.arms)
            for old in [key for key in self._ring if not number - self.buckets <= key <= number]:
                del self._ring[old]
        return self._ring[number]
