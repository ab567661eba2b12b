"""Metrics for Prometheus: counters, histograms and gauges, by arm, in seconds and tokens.

Labels take the arms of the config and words of this program only, so that no client can make a series of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import get_args

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mi_prun.version import __version__
from serve.ab.proxy.service import Service
from serve.ab.verdict.event import Event, Outcome, Reason, ShadowComparison
from serve.ab.verdict.quantities import known_finish_reason

PREFIX = "mi_prun_ab"
ENGINES_ASKED = 4  # at a time
TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
AGREEMENT = tuple(tenth / 10 for tenth in range(1, 11))


class GapHistogram(Collector):
    """A histogram like prometheus_client's that takes all gaps of an answer at once.

    One by one they would hold up other answers.
    """

    def __init__(self, name: str, documentation: str, arms: Iterable[str]) -> None:
        self.name = name
        self.documentation = documentation
        self._counts = {arm: np.zeros(len(ITL_S) + 1) for arm in arms}
        self._sums = dict.fromkeys(self._counts, 0.0)

    def observe(self, arm: str, gaps: tuple[float, ...]) -> None:
        """Count the gaps of an answer, in seconds."""
        self._counts[arm] += np.bincount(np.searchsorted(ITL_S, gaps), minlength=len(ITL_S) + 1)
        self._sums[arm] += sum(gaps)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self.name, self.documentation, labels=["arm"])
        bounds = [*map(str, ITL_S), "+Inf"]
        for arm, counts in self._counts.items():
            buckets = list(zip(bounds, np.cumsum(counts).tolist(), strict=True))
            family.add_metric([arm], buckets, self._sums[arm])
        yield family


class LiveGauges(Collector):
    """Gauges and counters that are read when Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service, state = self._service, self._service.experiment.state
        total = sum(state.weights.values())
        arms = service.arms.values()
        yield _by_arm("split_ratio", "Share of the keys that the split gives to the arm.",
                      {arm: weight / total if total else 0.0 for arm, weight in state.weights.items()})  # fmt: skip
        yield _by_arm("arm_up", "Whether the arm can be sent requests.", {arm.name: arm.available for arm in arms})
        yield _by_arm("requests_in_flight", "Requests that the arm is answering.",
                      {arm.name: arm.in_flight for arm in arms})  # fmt: skip
        restarts = CounterMetricFamily(
            f"{PREFIX}_engine_restarts", "Times that the arm's engine was started anew.", labels=["arm"]
        )
        for arm in arms:
            restarts.add_metric([arm.name], float(arm.restarts))
        yield restarts
        yield _gauge("shadow_share_ratio", "Share of the requests that is mirrored.", state.shadow_share)
        yield _gauge("experiment_paused", "Whether all requests go to the control.", state.paused)
        yield _gauge("experiment_version", "Version of the weights, the shadow share and the pause.", state.version)
        failovers = CounterMetricFamily(
            f"{PREFIX}_failovers", "Requests that another arm answered, by the arm they were meant for.", labels=["arm"]
        )
        for arm in arms:
            failovers.add_metric([arm.name], float(service.failovers[arm.name]))
        yield failovers
        refused = CounterMetricFamily(
            f"{PREFIX}_requests_refused", "Requests that no arm answered, by the status they got.", labels=["status"]
        )
        for status, count in sorted(service.refusals.items()):
            refused.add_metric([str(status)], float(count))
        yield refused
        packed = CounterMetricFamily(
            f"{PREFIX}_packed_answers",
            "Answers that the arm compressed, so that only errors and end-to-end times are known of them.",
            labels=["arm"],
        )
        for arm in arms:
            packed.add_metric([arm.name], float(service.packed[arm.name]))
        yield packed
        lost = CounterMetricFamily(f"{PREFIX}_access_log_lines_lost", "Lines that could not be written.")
        lost.add_metric([], float(service.access_log.lost))
        yield lost
        broken = GaugeMetricFamily(
            f"{PREFIX}_guardrail_broken", "Whether the arm broke the guardrail.", labels=["arm", "guardrail"]
        )
        guardrail_check = service.collector.guardrail_check
        for name in service.collector.aggregates.others:
            for guardrail in guardrail_check.rules:
                broken.add_metric([name, guardrail.text], float(guardrail_check.break_of(name, guardrail) is not None))
        yield broken
        yield _by_arm("sample_ratio_p_value", "Of the split against the clients that came; small is a mismatch.",
                      {arm: ratio.p_value for arm, ratio in service.collector.aggregates.ratios.items()})  # fmt: skip


def _by_arm(name: str, documentation: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", documentation, labels=["arm"])
    for arm, value in values.items():
        family.add_metric([arm], float(value))
    return family


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", documentation, value=float(value))


class Metrics:
    """The metrics of one service, in a registry of their own.

    `observe` is the proxy's listener; `text` is what `/metrics` answers; `asking` is held while an engine is asked for
    its own metrics.
    """

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        self.asking = asyncio.Semaphore(ENGINES_ASKED)
        arms = list(service.arms)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", documentation, labels, registry=registry)

        def histogram(name: str, documentation: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", documentation, ["arm"], registry=registry, buckets=bounds)

        self._requests = counter(
            "requests", "Attempts at an arm, by why it was asked and how it ended.", "arm", "reason", "outcome"
        )
        self._finished = counter("finish_reasons", "Answers, by why the engine ended them.", "arm", "finish_reason")
        self._input = counter("input_tokens", "Tokens of prompts, where the engine says how many.", "arm")
        self._output = counter("output_tokens", "Tokens of answers.", "arm")
        self._shadows = counter(
            "shadow_requests", "Mirrored requests, by the arm they were mirrored to.", "arm", "outcome"
        )
        self._ttft = histogram("time_to_first_token_seconds", "Of streamed answers, since the arm was asked.", TTFT_S)
        self._duration = histogram("request_duration_seconds", "Of answers, since the arm was asked.", DURATION_S)
        self._agreement = histogram(
            "shadow_token_agreement_ratio", "Share of leading tokens that both arms give.", AGREEMENT
        )
        self._itl = GapHistogram(f"{PREFIX}_inter_token_latency_seconds", "Between parts of a streamed answer.", arms)
        registry.register(self._itl)
        registry.register(LiveGauges(service))
        Info(f"{PREFIX}_build", "The release.", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        self._label(arms)

    def _label(self, arms: list[str]) -> None:
        """Begin all series at 0, so that the first error is an increase."""
        for arm in arms:
            for reason in get_args(Reason):
                for outcome in get_args(Outcome):
                    self._requests.labels(arm, reason, outcome)
            for one in (self._input, self._output, self._ttft, self._duration, self._agreement):
                one.labels(arm)
            for outcome in ("compared", "error"):
                self._shadows.labels(arm, outcome)

    def observe(self, seen: Event | ShadowComparison) -> None:
        """Count an attempt at an arm, or a comparison."""
        if isinstance(seen, ShadowComparison):
            self._shadows.labels(seen.shadow_arm, "compared" if seen.error is None else "error").inc()
            if seen.agreement is not None:
                self._agreement.labels(seen.shadow_arm).observe(seen.agreement)
            return
        self._requests.labels(seen.arm, seen.reason, seen.outcome).inc()
        self._duration.labels(seen.arm).observe(seen.e2e_s)
        if seen.streamed and seen.ttft_s is not None and seen.status == 200:
            self._ttft.labels(seen.arm).observe(seen.ttft_s)
        if seen.itl_s:
            self._itl.observe(seen.arm, seen.itl_s)
        if seen.input_tokens:
            self._input.labels(seen.arm).inc(seen.input_tokens)
        if seen.output_tokens:
            self._output.labels(seen.arm).inc(seen.output_tokens)
        if seen.finish_reason:
            self._finished.labels(seen.arm, known_finish_reason(seen.finish_reason)).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
