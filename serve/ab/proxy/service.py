"""What all parts of `mi-prun-ab` share: `app.state.ab`."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serve.ab.arms.arm import Arm
from serve.ab.arms.arm_identity import digest_of
from serve.ab.config import Config
from serve.ab.experiment.experiment import Experiment
from serve.ab.experiment.store import Store
from serve.ab.proxy.access_log import AccessLog
from serve.ab.proxy.deadline import Sweeper
from serve.ab.proxy.parsed_request import RefusalError
from serve.ab.proxy.security import Keys
from serve.ab.proxy.shadow import Shadow
from serve.ab.proxy.stream_meter import Reading
from serve.ab.verdict.collector import EventCollector
from serve.ab.verdict.event import Event, Listener, Outcome, ShadowComparison
from serve.ab.wire.headers import value_of
from serve.ab.wire.upstream import Upstream

if TYPE_CHECKING:
    from serve.ab.proxy.admitted_request import Call

logger = logging.getLogger("mi_prun_ab")


class Service:
    """listeners are told of every attempt at an arm and of every comparison, in the event loop: they must be quick.

    failovers: of requests that another arm answered, by the arm that they were meant for. refusals: of requests that no
    arm was asked for, or none answered, by status.
    """

    def __init__(
        self, config: Config, arms: Mapping[str, Arm], keys: Keys, store: Store, experiment: Experiment
    ) -> None:
        self.config = config
        self.arms = dict(arms)
        self.keys = keys
        self.store = store
        self.experiment = experiment
        self.upstream = Upstream(config.limits.connect_s)
        self.sweeper = Sweeper(config.limits)
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
        self.shadow = Shadow(config.shadow, self.arms, self.upstream, self.compared)
        self.failovers: Counter[str] = Counter()
        self.refusals: Counter[int] = Counter()
        self.listener_failures = 0

    def notes(self) -> list[str]:
        """What an operator should know of the experiment as it is now."""
        return self.collector.idle(self.experiment.state.shadow_share)

    def _warn(self) -> None:
        for note in self.notes():
            logger.warning("experiment %s: %s", self.experiment.name, note)

    def tell(self, said: Event | ShadowComparison) -> None:
        """A listener that fails is counted, and never harms an answer."""
        for listener in self.listeners:
            try:
                listener(said)
            except Exception:
                self.listener_failures += 1
                if self.listener_failures in (1, 10, 100) or self.listener_failures % 1000 == 0:
                    logger.exception("a listener failed (%d times so far)", self.listener_failures)

    def asked(self, call: Call, arm: Arm) -> None:
        """An arm is about to be asked: the verdict must know of it before it is known how fast it answers."""
        if call.counted_at(arm):
            self.collector.asked(call.sequence, arm.name, call.assignment.key_hash)

    def ended(
        self, call: Call, arm: Arm, started: float, status: int, outcome: Outcome, reading: Reading | None = None
    ) -> Event:
        """An attempt at an arm is over: its circuit, the listeners and the log are told."""
        arm.ended(outcome, status)
        told = Event(
            time=time.time(),
            arm=arm.name,
            assigned_arm=call.assignment.arm,
            reason=call.reason_at(arm),
            counted=call.counted_at(arm),
            key_hash=call.assignment.key_hash,
            path=call.request.path,
            streamed=call.request.streamed,
            status=status,
            outcome=outcome,
            ttft_s=reading.ttft_s if reading else None,
            itl_s=tuple(reading.itl_s) if reading else (),
            e2e_s=time.monotonic() - started,
            input_tokens=reading.input_tokens if reading else None,
            output_tokens=reading.output_tokens if reading else None,
            finish_reason=reading.finish_reason if reading else None,
            sequence=call.sequence,
        )
        self.tell(told)
        self._log(told, call)
        return told

    def compared(self, said: ShadowComparison) -> None:
        """Told and logged."""
        self.tell(said)
        fields = {name: value for name, value in vars(said).items() if name not in ("time", "error", "sequence")}
        outcome = "compared" if said.error is None else "not compared"
        self.access_log.write(time=round(said.time, 3), outcome=outcome, why=said.error, **fields)

    def refused(self, path: str, refusal: RefusalError) -> None:
        self.refusals[refusal.status] += 1
        self.access_log.write(time=time.time(), path=path, status=refusal.status, outcome="refused", why=refusal.code)

    def _log(self, told: Event, call: Call) -> None:
        prompt = None
        if self.config.log_prompts:
            prompt = call.request.fields.get("messages", call.request.fields.get("prompt"))
        self.access_log.write(
            time=round(told.time, 3),
            path=told.path,
            status=told.status,
            outcome=told.outcome,
            arm=told.arm,
            reason=told.reason,
            assigned_arm=told.assigned_arm,
            counted=told.counted,
            key_hash=told.key_hash or None,
            streamed=told.streamed,
            ttft_ms=None if told.ttft_s is None else round(1e3 * told.ttft_s, 3),
            e2e_ms=round(1e3 * told.e2e_s, 3),
            input_tokens=told.input_tokens,
            output_tokens=told.output_tokens,
            finish_reason=told.finish_reason,
            trace=_trace_of(call.headers),
            prompt=prompt,
        )


def _trace_of(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The W3C trace's id, so that a line can be found by it; the header itself goes on to the arm as it is."""
    parts = (value_of(headers, b"traceparent") or b"").decode("latin-1").split("-")
    return parts[1] if len(parts) >= 4 else None
