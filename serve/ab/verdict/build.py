"""The verdict, built out of the aggregates."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import NormalDist

from serve.ab.verdict.aggregates import Aggregates, ArmAggregates
from serve.ab.verdict.guardrail_check import GuardrailCheck, bounds_of, standing, value_of
from serve.ab.verdict.quantities import QUANTITIES
from serve.ab.verdict.sample_ratio import ALPHA as SAMPLE_RATIO_ALPHA
from serve.ab.verdict.schema import (
    ArmFigures,
    Comparison,
    Difference,
    Direction,
    Figure,
    GuardrailFigure,
    Interval,
    SampleRatioCheck,
    SampleSize,
    ShadowFigures,
    Verdict,
    VerdictSettings,
    line,
)
from serve.ab.verdict.statistics import Bounds, Share
from serve.ab.verdict.sums import MIN_BUCKETS, MIN_REQUESTS, Contrast, rate_bounds

NOTED_WAIT_S = 30.0


def build_verdict(
    experiment: str, aggregates: Aggregates, settings: VerdictSettings, guardrail_check: GuardrailCheck
) -> Verdict:
    """Return the verdict as of now."""
    arms = {name: _arm(name, arm, aggregates, settings.alpha) for name, arm in aggregates.arms.items()}
    comparisons = [
        _comparison(arms[name], arms[aggregates.control], aggregates, settings, guardrail_check)
        for name in aggregates.others
    ]
    lines = [comparison.text for comparison in comparisons]
    return Verdict(
        experiment=experiment,
        time=time.time(),
        since=aggregates.since,
        control=aggregates.control,
        alpha=settings.alpha,
        not_counted=aggregates.not_counted,
        split_changes=aggregates.split_changes,
        arms=list(arms.values()),
        comparisons=comparisons,
        notes=_notes(aggregates, comparisons),
        text="\n".join(lines) if lines else f"{aggregates.control}: the only arm, nothing to compare it with",
    )


def _interval(bounds: tuple[float, float | None] | None) -> Interval | None:
    return None if bounds is None else Interval(low=bounds[0], high=bounds[1])


def _arm(name: str, arm: ArmAggregates, aggregates: Aggregates, alpha: float) -> ArmFigures:
    total = sum(aggregates.weights.values())
    return ArmFigures(
        arm=name,
        share=aggregates.weights[name] / total if total else 0.0,
        requests=arm.requests,
        outcomes=dict(arm.outcomes),
        finish_reasons=dict(arm.finish_reasons),
        failed_over=aggregates.failovers[name],
        error_rate=Figure(
            requests=arm.errors.trials, mean=arm.errors.mean, interval=_interval(arm.errors.bounds(alpha))
        ),
        gave_up_rate=Figure(
            requests=arm.gave_up.trials, mean=arm.gave_up.mean, interval=_interval(arm.gave_up.bounds(alpha))
        ),
        figures={figure: _figure(arm, figure, alpha) for figure in QUANTITIES},
    )


def _figure(arm: ArmAggregates, name: str, alpha: float) -> Figure:
    sums = arm.sums[name]
    p50, p90, p95, p99 = arm.quantiles[name].quantiles((0.5, 0.9, 0.95, 0.99))
    return Figure(
        requests=sums.count,
        mean=sums.ratio,
        interval=_interval(Contrast(sums).bounds(alpha, 0.0)),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
    )


def _direction(bounds: Bounds | None) -> Direction:
    if bounds is None:
        return "unknown"
    return "lower" if bounds[1] < 0 else "higher" if bounds[0] > 0 else "no different"


def _difference(aggregates: Aggregates, arm: str, figure: str, alpha: float) -> Difference:
    contrast = aggregates.contrast(arm, figure)
    bounds = contrast.bounds(alpha)
    return Difference(
        difference=contrast.estimate() if contrast.known else None,
        interval=_interval(bounds),
        ratio=contrast.ratio(),
        ratio_interval=_interval(contrast.ratio_bounds(alpha)),
        direction=_direction(bounds),
    )


def _rate_difference(ours: Share, control: Share, weighted: Contrast, alpha: float) -> Difference:
    bounds = rate_bounds(ours, control, weighted, alpha)
    return Difference(
        difference=weighted.estimate() if weighted.known else None,
        interval=_interval(bounds),
        direction=_direction(bounds),
    )


def _comparison(
    ours: ArmFigures,
    theirs: ArmFigures,
    aggregates: Aggregates,
    settings: VerdictSettings,
    guardrail_check: GuardrailCheck,
) -> Comparison:
    name, alpha = ours.arm, settings.alpha
    arm, control = aggregates.arms[name], aggregates.arms[aggregates.control]
    differences = {figure: _difference(aggregates, name, figure, alpha) for figure in QUANTITIES}
    errors = Contrast(arm.weighted_errors, control.weighted_errors)
    gave_up = Contrast(arm.weighted_gave_up, control.weighted_gave_up)
    comparison = Comparison(
        arm=name,
        text="",
        differences=differences,
        error_rate=_rate_difference(arm.errors, control.errors, errors, alpha),
        gave_up_rate=_rate_difference(arm.gave_up, control.gave_up, gave_up, alpha),
        shadow=_shadow(name, aggregates, alpha),
        sample_size=_sample_size(name, aggregates, settings),
        sample_ratio=_sample_ratio(name, aggregates),
        guardrails=_guardrails(name, aggregates, guardrail_check),
    )
    text = line(comparison, ours, theirs, alpha, aggregates.incomparable(name))
    return comparison.model_copy(update={"text": text})


def _shadow(name: str, aggregates: Aggregates, alpha: float) -> ShadowFigures:
    shadow = aggregates.shadows[name]
    agreement, logprobs = shadow.agreement[alpha], shadow.logprobs
    return ShadowFigures(
        comparisons=agreement.count,
        errors=shadow.errors,
        agreement=Figure(requests=agreement.count, mean=agreement.mean, interval=_interval(agreement.bounds())),
        logprob_difference_nats=Figure(
            requests=logprobs.count,
            mean=logprobs.ratio,
            interval=_interval(Contrast(logprobs).bounds(alpha, 0.0)),
        ),
    )


def _sample_size(name: str, aggregates: Aggregates, settings: VerdictSettings) -> SampleSize:
    sums, control = (
        aggregates.arms[name].sums[settings.figure],
        aggregates.arms[aggregates.control].sums[settings.figure],
    )
    times = Contrast(sums, control).needed(
        settings.minimal_effect * (control.ratio or 0.0), settings.alpha, NormalDist().inv_cdf(settings.power)
    )
    needed = None if times is None else max(MIN_REQUESTS, math.ceil(times * sums.count))
    return SampleSize(
        figure=settings.figure,
        minimal_effect=settings.minimal_effect,
        power=settings.power,
        have=sums.count,
        needed=needed,
        reached=needed is not None and sums.count >= needed,
    )


def _sample_ratio(name: str, aggregates: Aggregates) -> SampleRatioCheck:
    ratio = aggregates.ratios[name]
    return SampleRatioCheck(
        clients=ratio.clients,
        share=ratio.arm_clients / ratio.clients if ratio.clients else None,
        expected_share=ratio.expected / ratio.clients if ratio.clients else None,
        p_value=ratio.p_value,
        alpha=SAMPLE_RATIO_ALPHA,
        mismatch=ratio.p_value < SAMPLE_RATIO_ALPHA,
    )


def _guardrails(name: str, aggregates: Aggregates, guardrail_check: GuardrailCheck) -> list[GuardrailFigure]:
    figures = []
    for guardrail in guardrail_check.rules:
        bounds = bounds_of(guardrail, name, aggregates, guardrail_check.alpha)
        broken = guardrail_check.break_of(name, guardrail)
        figures.append(
            GuardrailFigure(
                text=guardrail.text,
                value=value_of(guardrail, name, aggregates, guardrail_check.alpha),
                interval=_interval(bounds and (bounds[0], None if math.isinf(bounds[1]) else bounds[1])),
                standing="broken" if broken else standing(guardrail, name, aggregates, guardrail_check.alpha),
                broken_at=broken.time if broken else None,
                drained=broken.drained if broken else False,
            )
        )
    return figures


def _notes(aggregates: Aggregates, comparisons: Sequence[Comparison]) -> list[str]:
    notes = []
    for comparison in comparisons:
        check = comparison.sample_ratio
        if check.mismatch and check.share is not None and check.expected_share is not None:
            notes.append(
                f"{comparison.arm} had {check.share:.2%} of {check.clients:,} clients where the split gave it "
                f"{check.expected_share:.2%} (p = {check.p_value:.2g}): requests are lost in one arm, do not believe "
                "the differences before that is found"
            )
        answers = aggregates.arms[comparison.arm].sums["e2e_ms"].count
        if comparison.sample_size.have == 0 and answers >= MIN_REQUESTS:
            notes.append(
                f"none of the {answers:,} answers of {comparison.arm} has a {comparison.sample_size.figure} (streams "
                'alone have TTFT and ITL), so no sample size can be said; set figure = "e2e_ms" in [verdict]'
            )
    for name, one in aggregates.arms.items():
        sums = one.weighted_errors
        if sums.count >= MIN_REQUESTS and not sums.enough:
            notes.append(
                f"a few sticky keys have most of the requests of {name}: they say as much as "
                f"{sums.effective_buckets:.0f} equal clients, and an interval needs {MIN_BUCKETS:g} of each arm"
            )
    for arm in aggregates.others:
        reasons = aggregates.incomparable(arm)
        for reason in dict.fromkeys(reasons.values()):
            titles = " and ".join(QUANTITIES[name].title for name, why in reasons.items() if why == reason)
            notes.append(f"{arm} and {aggregates.control} cannot be compared in {titles}: {reason}")
    if aggregates.share_of_keys_missed > 0.5:
        notes.append(
            f"{aggregates.share_of_keys_missed:.0%} of new sticky keys do not count for the sample ratio: so many have "
            "come that they are taken for known ones, in either arm alike"
        )
    if aggregates.order.waiting and aggregates.order.oldest_s > NOTED_WAIT_S:
        notes.append(
            f"not in the figures yet: {aggregates.order.waiting:,} that ended. Requests count in the order in which "
            f"they were asked, and one asked {aggregates.order.oldest_s:.0f} s ago is still being answered"
        )
    if aggregates.split_changes:
        times = "once" if aggregates.split_changes == 1 else f"{aggregates.split_changes} times"
        notes.append(
            f"the split was changed {times}: a request counts by the share its arm had then, "
            "so that both arms speak of the same times"
        )
    return notes
