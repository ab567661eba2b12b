"""The state that all requests share: `app.state.ab`."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping

from serve.ab.arms.arm import Arm
from serve.ab.arms.arm_identity import digest_of
from serve.ab.config import Config
from serve.ab.experiment.experiment import Experiment
from serve.ab.experiment.store import Store
from serve.ab.proxy.access_log import AccessLog
from serve.ab.proxy.admitted_request import AdmittedRequest
from serve.ab.proxy.attempt import Attempt
from serve.ab.proxy.deadline import Deadlines
from serve.ab.proxy.parsed_request import RefusalError
from serve.ab.proxy.security import Keys
from serve.ab.proxy.shadow import ShadowTraffic
from serve.ab.proxy.stream_meter import StreamMeter
from serve.ab.verdict.collector import EventCollector
from serve.ab.verdict.event import Event, Listener, Outcome, ShadowComparison
from serve.ab.wire.headers import value_of
from serve.ab.wire.upstream import Upstream

logger = logging.getLogger("mi_prun_ab")


class Service:
    """The state that all requests share.

    listeners: they are told of every attempt at an arm and of every comparison, in the event loop, so they must be
    quick. failovers: how many requests another arm answered, by the arm that they were meant for. refusals: how many
    requests no arm was asked for, or none answered, by status. packed: how many answers were compressed, by arm.
    """

    def __init__(
        self,
        config: Config,
        arms: Mapping[str, Arm],
        keys: Keys,
        store: Store,
        experiment: Experiment,
        upstream: Upstream | None = None,
    ) -> None:
        self.config = config
        self.arms = dict(arms)
        self.keys = keys
        self.store = store
        self.experiment = experiment
        self.upstream = upstream or Upstream(config.limits.connect_s)
        self.deadlines = Deadlines(config.limits)
        self.access_log = AccessLog(config.access_log)
        self.collector = EventCollector(
            experiment.name,
            experiment.control,
            experiment.state.weights,
            settings=config.verdict,
            guardrails=config.guardrails,
            drain=experiment.drain,
            identities={name: digest_of(arm.config) for name, arm in self.arms.items()},
        )
        experiment.subscribers += [
            lambda state: self.collector.split_changed(state.weights),
            lambda state: self._warn(),
        ]
        self._warn()
        self.listeners: list[Listener] = [self.collector.observe]
        self.shadow = ShadowTraffic(config.shadow, self.arms, self.upstream, self.compared)
        self.failovers: Counter[str] = Counter()
        self.refusals: Counter[int] = Counter()
        self.packed: Counter[str] = Counter()
        self.listener_failures = 0

    def notes(self) -> list[str]:
        """Return what an operator should know of the experiment as it is now."""
        return self.collector.idle(self.experiment.state.shadow_share)

    def _warn(self) -> None:
        for note in self.notes():
            logger.warning("experiment %s: %s", self.experiment.name, note)

    def tell(self, event: Event | ShadowComparison) -> None:
        """Tell the listeners. One that fails is counted, and never harms an answer."""
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:
                self.listener_failures += 1
                if self.listener_failures in (1, 10, 100) or self.listener_failures % 1000 == 0:
                    logger.exception("a listener failed (%d times so far)", self.listener_failures)

    def asked(self, attempt: Attempt) -> None:
        """Tell the verdict that an arm is asked, before it is known how fast it answers."""
        request, arm = attempt.request, attempt.arm
        if request.counted_at(arm):
            self.collector.asked(request.sequence, arm.name, request.assignment.key_hash)

    def ended(self, attempt: Attempt, outcome: Outcome, status: int = 0, meter: StreamMeter | None = None) -> Event:
        """End an attempt: its arm, the listeners and the log are told. status: 0 where none came."""
        request, arm = attempt.request, attempt.arm
        arm.request_ended(outcome, status)
        packed = meter is not None and meter.packed
        if packed:
            self._count_packed(arm)
        event = Event(
            time=time.time(),
            arm=arm.name,
            assigned_arm=request.assignment.arm,
            reason=request.reason_at(arm),
            counted=request.counted_at(arm),
            key_hash=request.assignment.key_hash,
            path=request.parsed.path,
            streamed=request.parsed.streamed,
            status=status,
            outcome=outcome,
            ttft_s=meter.ttft_s if meter and not packed else None,
            itl_s=tuple(meter.itl_s) if meter else (),
            e2e_s=time.monotonic() - attempt.started_s,
            input_tokens=meter.input_tokens if meter else None,
            output_tokens=meter.output_tokens if meter else None,
            finish_reason=meter.finish_reason if meter else None,
            sequence=request.sequence,
            usage=meter is None or meter.usage,
            stream_events=meter.stream_events if meter else 0,
        )
        self.tell(event)
        self._log(event, request)
        return event

    def _count_packed(self, arm: Arm) -> None:
        if not self.packed[arm.name]:
            logger.warning(
                "arm %s compresses its answers although `identity` is asked for: they are passed on unread, and only "
                "errors and end-to-end times are known of them",
                arm.name,
            )
        self.packed[arm.name] += 1

    def compared(self, comparison: ShadowComparison) -> None:
        """Tell and log what came of a mirrored request."""
        self.tell(comparison)
        fields = {name: value for name, value in vars(comparison).items() if name not in ("time", "error", "sequence")}
        outcome = "compared" if comparison.error is None else "not compared"
        self.access_log.write(time=round(comparison.time, 3), outcome=outcome, why=comparison.error, **fields)

    def refused(self, path: str, refusal: RefusalError) -> None:
        """Count and log a request that got no arm's answer."""
        self.refusals[refusal.status] += 1
        self.access_log.write(time=time.time(), path=path, status=refusal.status, outcome="refused", why=refusal.code)

    def _log(self, event: Event, request: AdmittedRequest) -> None:
        prompt = None
        if self.config.log_prompts:
            fields = request.parsed.fields
            prompt = next((fields[name] for name in ("messages", "prompt", "input") if name in fields), None)
        self.access_log.write(
            time=round(event.time, 3),
            path=event.path,
            status=event.status,
            outcome=event.outcome,
            arm=event.arm,
            reason=event.reason,
            assigned_arm=event.assigned_arm,
            counted=event.counted,
            key_hash=event.key_hash or None,
            streamed=event.streamed,
            ttft_ms=None if event.ttft_s is None else round(1e3 * event.ttft_s, 3),
            e2e_ms=round(1e3 * event.e2e_s, 3),
            input_tokens=event.input_tokens,
            output_tokens=event.output_tokens,
            finish_reason=event.finish_reason,
            trace=_trace_of(request.headers),
            prompt=prompt,
        )


def _trace_of(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the W3C trace's id, so that a line can be found by it. The header itself goes on to the arm as it is."""
    parts = (value_of(headers, b"traceparent") or b"").decode("latin-1").split("-")
    return parts[1] if len(parts) >= 4 else None
