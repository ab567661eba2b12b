"""The experiment while it runs: its weights, the mirrored share, a pause; changed by compare-and-set, kept in the
store.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serve.ab.config import Config, check_weights
from serve.ab.experiment.split import key_hash, random_key, ranking
from serve.ab.experiment.store import ConflictError, State, Store
from serve.ab.verdict.event import Reason

logger = logging.getLogger("mi_prun_ab")
SAVE_S = 3.0


@dataclass(frozen=True)
class Assignment:
    """The arms that a request may go to.

    order: all arms; the first is the one assigned, the others are what to fail over to. key_hash: "" where it was drawn
    at random.
    """

    order: tuple[str, ...]
    reason: Reason
    key_hash: str

    @property
    def arm(self) -> str:
        return self.order[0]


class Experiment:
    """The running experiment and its changes.

    subscribers are told of every change once it is on the disk, and of a drain by a guardrail whether it is or not.
    """

    def __init__(self, config: Config, store: Store, *, reset: bool = False) -> None:
        self.name = config.experiment
        self.control = config.control
        self.store = store
        self.state = store.open_experiment(self.name, config.weights, config.shadow.share, reset=reset)
        self.subscribers: list[Callable[[State], None]] = []
        self._on_disk = self.state.version
        self._unsaved: list[State] = []
        self._failed = 0  # the version whose writing failed last
        kept, given = _said(self.state), _said(self.state.model_copy(update=_as_configured(config)))
        if kept != given:
            logger.warning(
                "experiment %s goes on as %s has it: %s (version %d, by %s); not as it is configured: %s; --reset "
                "takes that, and begins the figures anew",
                *(self.name, store.path, kept, self.state.version, self.state.who, given),
            )

    def change(
        self,
        expected_version: int,
        *,
        who: str,
        why: str,
        weights: Mapping[str, float] | None = None,
        shadow_share: float | None = None,
        paused: bool | None = None,
    ) -> State:
        """Change what is not None.

        weights: those named; the others stay too. Raises ConflictError where `expected_version`
        is not the version any more, ValueError for weights that cannot be; then nothing has changed.
        """
        if self.state.version != expected_version:
            raise ConflictError
        if shadow_share is not None and not 0.0 <= shadow_share <= 1.0:
            raise ValueError(f"shadow_share must be in 0..1, got {shadow_share:g}")
        asked = {"shadow_share": shadow_share, "paused": paused}
        new = self._next(who, why, weights or {}, {name: value for name, value in asked.items() if value is not None})
        self.store.replace(self.name, self._on_disk, *self._unsaved, new)
        self._on_disk, self._unsaved = new.version, []
        self._take(new)
        return new

    def _next(self, who: str, why: str, weights: Mapping[str, float], changed: Mapping[str, float]) -> State:
        old = self.state
        merged = {**old.weights, **weights}
        check_weights(merged, old.weights)
        why = " ".join(why.split())  # it is a line of the log
        update = {"version": old.version + 1, "weights": merged, "time": time.time(), "who": who, "why": why}
        return State.model_validate(old.model_dump() | update | dict(changed))

    def _take(self, new: State) -> None:
        self.state = new
        logger.info(
            "experiment %s is version %d now, by %s (%s): %s", self.name, new.version, new.who, new.why, _said(new)
        )
        for subscriber in self.subscribers:
            try:
                subscriber(new)
            except Exception:
                logger.exception("a subscriber failed on version %d", new.version)

    def drain(self, arm: str, reason: str) -> bool:
        """Set an arm's weight to 0; return whether it had one. Where it had all, the control has it then.

        It holds at once, whether the disk takes it or not: `run` tries that again.
        """
        state = self.state
        if not state.weights.get(arm):
            return False
        weights = {arm: 0.0}
        if sum(state.weights.values()) <= state.weights[arm]:
            weights[self.control] = state.weights[arm]
        new = self._next("guardrail", reason, weights, {})
        self._take(new)
        self._unsaved.append(new)
        self._save()
        return True

    def _save(self) -> None:
        if not self._unsaved:
            return
        newest = self._unsaved[-1].version
        try:
            self.store.replace(self.name, self._on_disk, *self._unsaved)
        except sqlite3.Error as error:
            if newest != self._failed:
                logger.error(
                    "experiment %s: version %d holds, but cannot be written to %s, and a restart would not know it: %s",
                    *(self.name, newest, self.store.path, error),
                )
            self._failed = newest
            return
        self._on_disk, self._unsaved = newest, []

    async def run(self) -> None:
        """Write what could not be written."""
        try:
            while True:
                await asyncio.sleep(SAVE_S)
                self._save()
        finally:
            self._save()

    def assign(self, sticky_key: str | None, explicit: str | None) -> Assignment:
        """Return the arm for a request.

        explicit: an arm that an operator asked for, and that nothing else may answer for.
        """
        if explicit is not None:
            return Assignment((explicit,), "explicit", "")
        state = self.state
        key = random_key() if sticky_key is None else sticky_key
        order = ranking(self.name, key, state.weights)
        if state.paused:
            order = [self.control, *(arm for arm in order if arm != self.control)]
            return Assignment(tuple(order), "paused", "" if sticky_key is None else key_hash(key))
        if sticky_key is None:
            return Assignment(tuple(order), "split", "")
        return Assignment(tuple(order), "sticky", key_hash(key))


def _as_configured(config: Config) -> dict[str, Any]:
    return {"weights": config.weights, "shadow_share": config.shadow.share, "paused": False}


def _said(state: State) -> str:
    weights = ", ".join(f"{arm}={weight:g}" for arm, weight in state.weights.items())
    return f"{weights}; shadow share {state.shadow_share:g}{'; paused' if state.paused else ''}"
