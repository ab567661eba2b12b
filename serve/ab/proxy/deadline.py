"""How long a request may wait for each thing, and what ends a wait early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

from serve.ab.arms.arm import Arm
from serve.ab.config import Limits

SWEEP_S = 0.25


class Phase(Enum):
    """What a request waits for: its own body, an arm's first byte, an arm's next part, or a client that takes one."""

    REQUEST = "request"
    FIRST_BYTE = "first_byte"
    IDLE = "idle"
    SEND = "send"


class Abort(Enum):
    """Why a wait was ended early. The value is what clients and logs are told."""

    CLIENT_GONE = "client_gone"
    ARM_DOWN = "arm_down"
    REQUEST_TIMEOUT = "request_timeout"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    SEND_TIMEOUT = "send_timeout"

    @property
    def timed_out(self) -> bool:
        return self in TIMEOUTS.values()


TIMEOUTS = {
    Phase.REQUEST: Abort.REQUEST_TIMEOUT,
    Phase.FIRST_BYTE: Abort.FIRST_BYTE_TIMEOUT,
    Phase.IDLE: Abort.IDLE_TIMEOUT,
    Phase.SEND: Abort.SEND_TIMEOUT,
}


class AbortedError(Exception):
    """A wait was ended early. why: what ended it."""

    def __init__(self, why: Abort) -> None:
        super().__init__(why.value)
        self.why = why


class Deadline:
    """What one request waits for, and since when. It is made in the task that answers the request.

    phase, since_s: set by `wait_for`. `abort` ends the wait from outside; `interruptible` turns that into AbortedError
    where the wait is. alternatives: arms that can still be asked in place of the one that is waited for.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is made in the task that answers")
        self.phase = Phase.REQUEST
        self.since_s = time.monotonic()
        self.alternatives: Sequence[Arm] = ()
        self._task = task
        self._aborted: Abort | None = None
        self._interruptible = False

    def wait_for(self, phase: Phase) -> None:
        """Begin to wait for something else."""
        self.phase, self.since_s = phase, time.monotonic()

    def abort(self, why: Abort) -> None:
        """End the wait, now or when the next one begins. The first reason counts; that the client left always does."""
        if self._aborted is None or why is Abort.CLIENT_GONE:
            self._aborted = why
            if self._interruptible:
                self._interruptible = False
                self._task.cancel()

    def arm_down(self) -> None:
        """End the wait for an arm that went down, where another arm can be asked."""
        if any(arm.available for arm in self.alternatives):
            self.abort(Abort.ARM_DOWN)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let `abort` end what is waited for inside. Raises AbortedError, at once where `abort` was called before."""
        if self._aborted is not None:
            raise AbortedError(self._take(self._aborted))
        self._interruptible = True
        try:
            yield
        except asyncio.CancelledError:
            if self._aborted is None:
                raise  # the server's own doing
            self._task.uncancel()
            raise AbortedError(self._take(self._aborted)) from None
        finally:
            self._interruptible = False

    def _take(self, why: Abort) -> Abort:
        """A client that is gone stays gone; anything else is over with this wait."""
        if why is not Abort.CLIENT_GONE:
            self._aborted = None
        return why


class Deadlines:
    """The deadlines of all requests. They are looked at a few times a second: cheaper than a timer for each part."""

    def __init__(self, limits: Limits) -> None:
        self.open: set[Deadline] = set()
        self._limits_s = {
            Phase.REQUEST: limits.request_s,
            Phase.FIRST_BYTE: limits.first_byte_s,
            Phase.IDLE: limits.idle_s,
            Phase.SEND: limits.send_s,
        }

    def sweep(self, now_s: float) -> None:
        """Abort what has waited too long. now_s: on the monotonic clock."""
        for deadline in list(self.open):
            if now_s - deadline.since_s > self._limits_s[deadline.phase]:
                deadline.abort(TIMEOUTS[deadline.phase])

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep(time.monotonic())
