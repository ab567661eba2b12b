"""A request while it is answered, and the one clock that all of them are held against."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from serve.ab.arms.arm import Arm
from serve.ab.config import Limits

Phase = Literal["request", "first_byte", "idle", "send"]
SWEEP_S = 0.25
GONE = "client_gone"


class AbortedError(Exception):
    """The exchange was told to stop what it waited for."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Exchange:
    """`phase`, `since`: what it waits for, and from when on; set by the one who waits.

    `abort` ends the wait from outside; `interruptible` turns that into AbortedError where it happens.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an exchange is made in the task that answers")
        self.task = task
        self.phase: Phase = "request"
        self.since = time.monotonic()
        self.why: str | None = None
        self.alternatives: Sequence[Arm] = ()
        self._interruptible = False

    def wait_for(self, phase: Phase) -> None:
        self.phase, self.since = phase, time.monotonic()

    def abort(self, why: str) -> None:
        """Takes effect where the exchange waits. Only the first reason counts, and a client that went away always."""
        if self.why is None or why == GONE:
            self.why = why
            if self._interruptible:
                self._interruptible = False
                self.task.cancel()

    def arm_down(self, why: str) -> None:
        """Its arm went down before it began to answer: worth a new attempt where there is another arm."""
        if any(arm.available for arm in self.alternatives):
            self.abort(why)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raises AbortedError, here or at the wait inside, where the exchange is or gets aborted."""
        if self.why is not None:
            raise AbortedError(self._taken())
        self._interruptible = True
        try:
            yield
        except asyncio.CancelledError:
            if self.why is None:
                raise  # the server's own doing
            self.task.uncancel()
            raise AbortedError(self._taken()) from None
        finally:
            self._interruptible = False

    def _taken(self) -> str:
        """A client that is gone stays gone; anything else is over with this attempt."""
        why = self.why or ""
        if why != GONE:
            self.why = None
        return why


class Sweeper:
    """Looks at all exchanges a few times a second, which is cheaper than a timer for each part of each answer."""

    def __init__(self, limits: Limits) -> None:
        self.exchanges: set[Exchange] = set()
        self._limits: dict[Phase, float] = {
            "request": limits.request_s,
            "first_byte": limits.first_byte_s,
            "idle": limits.idle_s,
            "send": limits.send_s,
        }

    def sweep(self, now: float) -> None:
        for exchange in list(self.exchanges):
            if now - exchange.since > self._limits[exchange.phase]:
                exchange.abort(f"{exchange.phase}_timeout")

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep(time.monotonic())


@contextmanager
def waiting_at(arm: Arm, exchange: Exchange) -> Iterator[None]:
    """The arm tells it where it goes down meanwhile."""
    arm.waiting.add(exchange)
    try:
        yield
    finally:
        arm.waiting.discard(exchange)
