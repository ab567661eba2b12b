"""The verdict: each arm's figures, the differences, and whether they can be believed.

Every interval holds at every look at once (`statistics.py`), each at its own level 1 - alpha.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import Field, field_validator

from mi_prun.artefact import Record
from serve.ab.verdict.guardrail_rule import Standing
from serve.ab.verdict.quantities import QUANTITIES

TOLD = ("ttft_ms", "itl_ms", "tokens_per_s")  # in the line, whether they differ or not
Direction = Literal["lower", "higher", "no different", "unknown"]


class VerdictSettings(Record):
    """How the verdict is made.

    alpha: of each interval, and of all guardrails together. figure: what the sample size is for. minimal_effect: the
    difference of it that must not be overlooked, as a share of the control's; power: how surely it is found.
    """

    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    figure: str = "ttft_ms"
    minimal_effect: float = Field(default=0.05, gt=0.0, le=1.0)
    power: float = Field(default=0.8, gt=0.0, lt=1.0)

    @field_validator("figure")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in QUANTITIES:
            raise ValueError(f"{name!r} is no figure (there are {', '.join(QUANTITIES)})")
        return name


class Interval(Record):
    """An interval; None is no bound on that side."""

    low: float | None
    high: float | None


class Figure(Record):
    """A figure of an arm. requests: that have one. mean, p50..p99: in the unit of its name. interval: of the mean."""

    requests: int
    mean: float | None
    interval: Interval | None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


class ArmFigures(Record):
    """All figures of an arm.

    requests: counted ones. share: of the split now. error_rate: upstream errors, timeouts and broken answers among
    the requests that the client was neither wrong about nor left. gave_up_rate: clients that left, among them and the
    answered.
    """

    arm: str
    share: float
    requests: int
    outcomes: dict[str, int]
    finish_reasons: dict[str, int]
    failed_over: int
    error_rate: Figure
    gave_up_rate: Figure
    figures: dict[str, Figure]


class Difference(Record):
    """An arm's figure beside the control's.

    difference: the arm's less the control's, in the figure's unit. ratio: the arm's over the control's."""

    difference: float | None
    interval: Interval | None
    ratio: float | None = None
    ratio_interval: Interval | None = None
    direction: Direction


class ShadowFigures(Record):
    """Figures of mirrored requests.

    agreement: share of leading tokens that are the same. logprob_difference_nats: mean log-probability of the
    control's tokens under the arm less under the control.
    """

    comparisons: int
    errors: int
    agreement: Figure
    logprob_difference_nats: Figure


class SampleSize(Record):
    """How many requests are enough.

    needed: requests of the arm that show `minimal_effect` on `figure` with `power`, looks at all times paid for; None
    while too few have come to say.
    """

    figure: str
    minimal_effect: float
    power: float
    have: int
    needed: int | None
    reached: bool


class SampleRatioCheck(Record):
    """Clients of the arm among its and the control's. p_value: of all looks; a mismatch is one below alpha."""

    clients: int
    share: float | None
    expected_share: float | None
    p_value: float
    alpha: float
    mismatch: bool


class GuardrailFigure(Record):
    """How a guardrail stands.

    value: the mean, the ratio to the control's or the percentile; an error rate counts requests in flight as answered.
    interval: of it; for a percentile, of the share of
    the values that are above the bound.
    """

    text: str
    value: float | None
    interval: Interval | None
    standing: Standing
    broken_at: float | None
    drained: bool


class Comparison(Record):
    """An arm beside the control. text: the verdict in a line."""

    arm: str
    text: str
    differences: dict[str, Difference]
    error_rate: Difference
    gave_up_rate: Difference
    shadow: ShadowFigures
    sample_size: SampleSize
    sample_ratio: SampleRatioCheck
    guardrails: list[GuardrailFigure]


class Verdict(Record):
    """The whole verdict.

    time, since: seconds since 1970; since when the figures are collected. notes: what to know before one believes
    it.
    """

    experiment: str
    time: float
    since: float
    control: str
    alpha: float
    not_counted: int
    split_changes: int
    arms: list[ArmFigures]
    comparisons: list[Comparison]
    notes: list[str]
    text: str


def line(
    comparison: Comparison, ours: ArmFigures, control: ArmFigures, alpha: float, incomparable: Collection[str] = ()
) -> str:
    """Return the verdict in a line. incomparable: quantities in which the two cannot be compared.

    As `pruned: TTFT 12 % lower (95 % CI 9..15 %), errors no different, agreement 0.71; n=1,240 of 2,000 needed`.
    """
    level = f"{100 * (1 - alpha):g} % CI"
    parts = []
    for name, difference in comparison.differences.items():
        if name in incomparable:
            parts.append(f"{QUANTITIES[name].title} cannot be compared")
        elif (name in TOLD or difference.direction in ("lower", "higher")) and (
            said := _relative(name, difference, level)
        ):
            parts.append(said)
    errors, rates = comparison.error_rate, (ours.error_rate.mean, control.error_rate.mean)
    if errors.direction != "unknown":
        parts.append(f"errors {errors.direction} ({rates[0]:.2%} against {rates[1]:.2%})")
    if comparison.shadow.agreement.mean is not None:
        parts.append(f"agreement {comparison.shadow.agreement.mean:.2f}")
    size = comparison.sample_size
    needed = ", too few to say how many are needed" if size.needed is None else f" of {size.needed:,} needed"
    ends = [f"n={size.have:,}{needed}" if parts or size.have else "no counted request yet"]
    ends += [
        f"guardrail {guardrail.text} BROKEN{', weight set to 0' if guardrail.drained else ''}"
        for guardrail in comparison.guardrails
        if guardrail.standing == "broken"
    ]
    if comparison.sample_ratio.mismatch:
        ends.append("SAMPLE RATIO MISMATCH, do not believe it")
    body = f"{', '.join(parts)}; " if parts else ""
    return f"{comparison.arm}: {body}{'; '.join(ends)}"


def _relative(name: str, difference: Difference, level: str) -> str:
    title = QUANTITIES[name].title
    if difference.ratio is None or difference.ratio_interval is None or difference.ratio_interval.low is None:
        return ""
    low, high = 100 * (difference.ratio_interval.low - 1), difference.ratio_interval.high
    if high is None:
        return f"{title} unknown"
    top = 100 * (high - 1)
    change = 100 * (difference.ratio - 1)
    if top < 0:
        return f"{title} {_round(-change)} % lower ({level} {_round(-top)}..{_round(-low)} %)"
    if low > 0:
        return f"{title} {_round(change)} % higher ({level} {_round(low)}..{_round(top)} %)"
    return f"{title} no different ({level} {low:+.1f}..{top:+.1f} %)"


def _round(percent: float) -> str:
    return f"{percent:.0f}" if percent >= 10 else f"{percent:.1f}"
