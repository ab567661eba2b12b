"""An arm while it serves: where it is, and whether it can be sent requests."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from mi_prun.errors import UserError
from serve.ab.config import ArmConfig, Config, Health
from serve.ab.verdict.event import Outcome

logger = logging.getLogger("mi_prun_ab")

Circuit = Literal["closed", "open", "half_open"]
KEY_REFUSED = (401, 403)
UNKNOWN = (404, 405)  # a path, or a model


class Waiting(Protocol):
    """Somebody who waits for an arm, and is told when it goes down."""

    def arm_down(self) -> None: ...


class Breaker:
    """The circuit of an arm.

    It opens after so many failures in a row. After its cool-down it lets one trial through. That closes it, or opens it
    again for twice as long.
    """

    def __init__(self, health: Health, clock: Callable[[], float] = time.monotonic) -> None:
        self._health = health
        self._clock = clock
        self._failures = 0
        self._cool_down_s = health.cool_down_s
        self._until = 0.0
        self._trial = False
        self.state: Circuit = "closed"

    def allows(self) -> bool:
        """Return whether a request may be sent now. `start` must follow where one is."""
        if self.state == "open" and self._clock() >= self._until:
            self.state, self._trial = "half_open", False
        return self.state == "closed" or (self.state == "half_open" and not self._trial)

    def start(self) -> None:
        self._trial = self.state == "half_open"

    def succeeded(self) -> None:
        self.reset()

    def failed(self) -> None:
        self._failures += 1
        if self.state == "half_open":
            self._cool_down_s = min(2 * self._cool_down_s, self._health.cool_down_max_s)
        if self.state != "closed" or self._failures >= self._health.failures:
            self.state, self._until = "open", self._clock() + self._cool_down_s

    def undecided(self) -> None:
        """Forget a trial that says nothing of the arm, because its client went away."""
        self._trial = False

    def reset(self) -> None:
        self.state, self._failures, self._trial = "closed", 0, False
        self._cool_down_s = self._health.cool_down_s


class Arm:
    """An arm while it serves: where it is, whether it is well, how many requests it has.

    base_url: None while its engine is not up. key: what it is asked with. restarts: of its engine. waiting: requests
    that have no first byte of it yet; they are told when it goes down. routes: whether its engine has a path, of those
    that were asked for.
    """

    def __init__(self, name: str, config: ArmConfig, health: Health) -> None:
        self.name = name
        self.config = config
        self.health = health
        self.base_url: str | None = config.url.rstrip("/") if config.url else None
        self.key: str | None = None
        self.healthy = True  # until a probe says otherwise: the first requests find out
        self.fault: str | None = None  # what the last probe found
        self.breaker = Breaker(health)
        self.in_flight = 0
        self.restarts = 0
        self.ever_up = False
        self.waiting: set[Waiting] = set()
        self.routes: dict[str, bool] = {}
        self._missed = 0

    @property
    def available(self) -> bool:
        return self.base_url is not None and self.healthy and self.breaker.allows()

    @property
    def key_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the proxy's own questions to it."""
        return [(b"authorization", f"Bearer {self.key}".encode())] if self.key else []

    def probed(self, fault: str | None) -> None:
        """Note what a probe found: why the arm is not well, or None. A change of its health is one line of the log."""
        self.fault = fault
        if fault is None:
            if not self.healthy:
                logger.info("arm %s is well again", self.name)
            self._missed, self.healthy = 0, True
            return
        self._missed += 1
        if self._missed >= self.health.failures and self.healthy:
            hint = "" if self.config.managed else "; another path to ask is set by health_path"
            logger.warning("arm %s is down, it gets no more requests: %s%s", self.name, fault, hint)
            self.went_down()

    def went_down(self) -> None:
        """Send it no more requests; those that it has not begun to answer go elsewhere."""
        self.healthy = False
        self.routes.clear()  # another engine may come up there
        for waiting in list(self.waiting):
            waiting.arm_down()

    @contextmanager
    def telling(self, waiting: Waiting) -> Iterator[None]:
        """Tell `waiting` if the arm goes down meanwhile."""
        self.waiting.add(waiting)
        try:
            yield
        finally:
            self.waiting.discard(waiting)

    def request_started(self) -> None:
        """Count a request that is sent to it. `request_ended` must follow, once."""
        self.in_flight += 1
        self.breaker.start()

    def request_ended(self, outcome: Outcome, status: int = 0) -> None:
        """Count a request as over, and tell the circuit.

        A client that went away says nothing of the arm, nor does a refusal that need not be its fault: a gateway's 404
        is no sign that an engine stands behind it.
        """
        self.in_flight -= 1
        before = self.breaker.state
        if outcome == "ok" or (outcome == "client_error" and status not in (*KEY_REFUSED, *UNKNOWN)):
            self.breaker.succeeded()
        elif outcome in ("client_gone", "client_error"):
            self.breaker.undecided()
        else:
            self.breaker.failed()
        if before == "closed" and self.breaker.state == "open":
            logger.warning(
                "arm %s gets no requests for %g s, %d in a row failed; the last one: %s, status %d",
                *(self.name, self.health.cool_down_s, self.health.failures, outcome, status),
            )
        elif before != "closed" and self.breaker.state == "closed":
            logger.info("arm %s gets requests again", self.name)

    def came_up(self, base_url: str, key: str | None) -> None:
        """Serve at a new place: the engine was started anew."""
        self.base_url, self.key, self.ever_up = base_url, key, True
        self._missed, self.healthy, self.fault = 0, True, None
        self.routes.clear()
        self.breaker.reset()

    def describe(self) -> dict[str, object]:
        """Return what operators are told of it."""
        return {
            "name": self.name,
            "available": self.available,
            "healthy": self.healthy,
            "circuit": self.breaker.state,
            "in_flight": self.in_flight,
            "restarts": self.restarts,
            "managed": self.config.managed,
        }


def make_arms(config: Config) -> dict[str, Arm]:
    """Return the arms of a config, by name. Raises UserError where the variable with an engine's key is not set."""
    arms = {name: Arm(name, arm, config.health) for name, arm in config.arms.items()}
    for name, arm in arms.items():
        if (variable := arm.config.api_key_env) is not None:
            arm.key = os.environ.get(variable)
            if not arm.key:
                raise UserError(f"arm {name}: the environment variable {variable} (api_key_env) is not set")
    return arms
