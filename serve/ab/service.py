"""What all parts of `mi-prun-ab` share: `app.state.ab`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from serve.ab.access_log import AccessLog
from serve.ab.arm import Arm
from serve.ab.config import Config
from serve.ab.exchange import Sweeper
from serve.ab.experiment import Experiment
from serve.ab.judge import Judge
from serve.ab.metrics import Metrics
from serve.ab.observation import Listener, Observation, ShadowComparison
from serve.ab.security import Keys
from serve.ab.store import Store
from serve.ab.upstream import Upstream

logger = logging.getLogger("mi_prun_ab")


class Service:
    """listeners are told of every attempt at an arm and of every comparison, in the event loop: they must be quick."""

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
        self.judge = Judge(
            experiment.name,
            experiment.control,
            experiment.state.weights,
            settings=config.verdict,
            guardrails=config.guardrails,
            drain=experiment.drain,
        )
        experiment.subscribers.append(lambda state: self.judge.split_changed(state.time, state.weights))
        self.metrics = Metrics(self, self.judge)
        self.listeners: list[Listener] = [self.judge.observe, self.metrics.observe]
        self.failovers = 0
        self.listener_failures = 0

    def tell(self, said: Observation | ShadowComparison) -> None:
        """A listener that fails is counted, and never harms an answer."""
        for listener in self.listeners:
            try:
                listener(said)
            except Exception:
                self.listener_failures += 1
                if self.listener_failures in (1, 10, 100) or self.listener_failures % 1000 == 0:
                    logger.exception("a listener failed (%d times so far)", self.listener_failures)
