"""All that is kept of the requests, in constant memory: what the verdict and the guardrails are read from.

Nothing of it is a request: sums, counts, and quantiles. `state` and `restored` carry it over a restart.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from serve.ab.verdict.event import Observation, ShadowComparison
from serve.ab.verdict.quantities import ARM_FAULTS, QUANTITIES, known_finish_reason
from serve.ab.verdict.sample_ratio import SampleRatio, Seen
from serve.ab.verdict.statistics import BoundedMean, Share
from serve.ab.verdict.sums import BUCKETS, Contrast, Quantiles, Sums

STATE_VERSION = 2
SPLITS_KEPT = 8

Threshold = tuple[str, float]  # a quantity, and a value of it


class ArmEvidence:
    """outcomes, finish_reasons: of counted requests. above: how many values are above a threshold."""

    def __init__(self, thresholds: Sequence[Threshold] = ()) -> None:
        self.outcomes: Counter[str] = Counter()
        self.finish_reasons: Counter[str] = Counter()
        self.errors = Share()
        self.weighted_errors = Sums()  # the same, to be compared with another arm's
        self.gave_up = Share()  # clients that did not wait for the end
        self.sums = {name: Sums() for name in QUANTITIES}
        self.quantiles = {name: Quantiles() for name in QUANTITIES}
        self.above = {threshold: Share() for threshold in thresholds}

    @property
    def requests(self) -> int:
        return self.outcomes.total()

    def add(self, seen: Observation, weight: float, bucket: int) -> None:
        self.outcomes[seen.outcome] += 1
        if seen.finish_reason:
            self.finish_reasons[known_finish_reason(seen.finish_reason)] += 1
        if seen.outcome not in ("client_error", "client_gone"):
            failed = seen.outcome in ARM_FAULTS
            self.errors.add(failed)
            self.weighted_errors.add(float(failed), 1.0, weight, bucket)
        if seen.outcome in ("ok", "client_gone"):
            self.gave_up.add(seen.outcome == "client_gone")
        for name, quantity in QUANTITIES.items():
            if (found := quantity.y_x(seen)) is not None:
                self.sums[name].add(*found, weight, bucket)
                self.quantiles[name].add(quantity.values(seen), weight)
        for (name, limit), above in self.above.items():
            for value in QUANTITIES[name].values(seen):
                above.add(value > limit)

    def state(self) -> dict[str, Any]:
        return {
            "outcomes": dict(self.outcomes),
            "finish_reasons": dict(self.finish_reasons),
            "errors": self.errors.state(),
            "weighted_errors": self.weighted_errors.state(),
            "gave_up": self.gave_up.state(),
            "sums": {name: sums.state() for name, sums in self.sums.items()},
            "quantiles": {name: quantiles.state() for name, quantiles in self.quantiles.items()},
            "above": [[*threshold, share.state()] for threshold, share in self.above.items()],
        }

    @classmethod
    def restored(cls, state: dict[str, Any], thresholds: Sequence[Threshold] = ()) -> ArmEvidence:
        arm = cls()
        arm.outcomes = Counter(state["outcomes"])
        arm.finish_reasons = Counter(state["finish_reasons"])
        arm.errors, arm.gave_up = Share.restored(state["errors"]), Share.restored(state["gave_up"])
        arm.weighted_errors = Sums.restored(state["weighted_errors"])
        arm.sums = {name: Sums.restored(state["sums"][name]) for name in QUANTITIES}
        arm.quantiles = {name: Quantiles.restored(state["quantiles"][name]) for name in QUANTITIES}
        arm.above = {(name, limit): Share.restored(share) for name, limit, share in state["above"]}
        if arm.above.keys() != set(thresholds):
            raise ValueError("the figures kept are of other guardrails")
        return arm


class ShadowEvidence:
    """Mirrored requests of an arm and the control. agreement: by level, since its bets depend on it. logprobs: shadow
    less primary, nats, where the control was the primary.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        self.errors = 0
        self.agreement = {level: BoundedMean(level) for level in levels}
        self.logprobs = Sums()

    @property
    def comparisons(self) -> int:
        return next(iter(self.agreement.values())).count

    def add(self, seen: ShadowComparison, control: str, bucket: int) -> None:
        if seen.error is not None or seen.agreement is None:
            self.errors += 1
            return
        for mean in self.agreement.values():
            mean.add(seen.agreement)
        if seen.logprob_difference_nats is not None and seen.primary_arm == control:
            self.logprobs.add(seen.logprob_difference_nats, 1.0, 1.0, bucket)

    def state(self) -> dict[str, Any]:
        return {
            "errors": self.errors,
            "agreement": [mean.state() for mean in self.agreement.values()],
            "logprobs": self.logprobs.state(),
        }

    @classmethod
    def restored(cls, state: dict[str, Any], levels: Sequence[float]) -> ShadowEvidence:
        shadow = cls(levels)
        shadow.errors = state["errors"]
        shadow.agreement = {
            level: BoundedMean.restored(mean, level) for level, mean in zip(levels, state["agreement"], strict=True)
        }
        shadow.logprobs = Sums.restored(state["logprobs"])
        return shadow


class Evidence:
    """control: the arm that the others are compared with. weights: of every arm, as the split has them now, of any
    sum.

    levels: alphas at which the agreement is wanted, the verdict's own first. thresholds: of percentiles that are
    guarded. identities: which model each arm is. since: seconds since 1970.
    """

    def __init__(
        self,
        control: str,
        weights: Mapping[str, float],
        levels: Sequence[float],
        thresholds: Sequence[Threshold] = (),
        identities: Mapping[str, str] | None = None,
        since: float | None = None,
    ) -> None:
        self.control = control
        self.identities = dict(identities or {})
        self.levels = tuple(dict.fromkeys(levels))
        self.since = time.time() if since is None else since
        self.arms = {name: ArmEvidence(thresholds) for name in weights}
        self.shadows = {name: ShadowEvidence(self.levels) for name in self.others}
        self.ratios = {name: SampleRatio() for name in self.others}
        self.not_counted = 0
        self.failovers: Counter[str] = Counter()  # by the arm that was left
        self.split_changes = 0
        self.latest = 0.0
        self._seen = Seen()
        self._turn = 0
        self._splits = deque([(float("-inf"), dict(weights))], maxlen=SPLITS_KEPT)

    @property
    def others(self) -> list[str]:
        return [name for name in self.arms if name != self.control]

    @property
    def weights(self) -> dict[str, float]:
        return self._splits[-1][1]

    def split_changed(self, at: float, weights: Mapping[str, float]) -> None:
        """at: seconds since 1970. Requests that began before it were drawn by the split before."""
        if dict(weights) != self.weights:
            self._splits.append((at, dict(weights)))
            self.split_changes += 1

    def observe(self, seen: Observation | ShadowComparison) -> None:
        if isinstance(seen, ShadowComparison):
            for name in (seen.shadow_arm, seen.primary_arm):
                if name in self.shadows and self.control in (seen.shadow_arm, seen.primary_arm):
                    self.shadows[name].add(seen, self.control, self._bucket(""))
            return
        if seen.reason == "failover" and seen.assigned_arm in self.arms:
            self.failovers[seen.assigned_arm] += 1
        if not seen.counted or seen.arm != seen.assigned_arm or seen.arm not in self.arms:
            self.not_counted += 1
            return
        split = self._split_at(seen.time - seen.e2e_s)
        total = sum(split.values())
        weight = split.get(seen.arm, 0.0)
        if weight <= 0:
            self.not_counted += 1
            return
        self.latest = max(self.latest, seen.time)
        self.arms[seen.arm].add(seen, total / weight, self._bucket(seen.key_hash))
        if not seen.key_hash or self._seen.is_new(seen.key_hash):
            self._count_client(seen.arm, split)

    def _count_client(self, arm: str, split: Mapping[str, float]) -> None:
        for name, ratio in self.ratios.items():
            pair = split[name] + split[self.control]
            if arm in (name, self.control) and 0 < split[name] < pair:
                ratio.add(arm == name, split[name] / pair)

    def _split_at(self, begun: float) -> dict[str, float]:
        for at, weights in reversed(self._splits):
            if at <= begun:
                return weights
        return self._splits[0][1]

    def _bucket(self, key_hash: str) -> int:
        if key_hash:
            return int(key_hash[:8], 16) % BUCKETS
        self._turn += 1
        return self._turn % BUCKETS

    def contrast(self, arm: str, quantity: str) -> Contrast:
        """Of an arm and the control."""
        return Contrast(self.arms[arm].sums[quantity], self.arms[self.control].sums[quantity])

    def state(self) -> dict[str, Any]:
        """JSON can hold it. Splits before the present one go: requests that began under them are over at a restart."""
        return {
            "version": STATE_VERSION,
            "control": self.control,
            "identities": self.identities,
            "since": self.since,
            "latest": self.latest,
            "not_counted": self.not_counted,
            "failovers": dict(self.failovers),
            "split_changes": self.split_changes,
            "weights": self.weights,
            "seen": self._seen.state(),
            "turn": self._turn,
            "arms": {name: arm.state() for name, arm in self.arms.items()},
            "shadows": {name: shadow.state() for name, shadow in self.shadows.items()},
            "ratios": {name: ratio.state() for name, ratio in self.ratios.items()},
        }

    @classmethod
    def restored(
        cls,
        state: dict[str, Any],
        control: str,
        weights: Mapping[str, float],
        levels: Sequence[float],
        thresholds: Sequence[Threshold] = (),
        identities: Mapping[str, str] | None = None,
    ) -> Evidence:
        """Raises ValueError or KeyError for the state of other arms or models, another control, other levels or another
        release.
        """
        if state["version"] != STATE_VERSION or state["control"] != control or state["arms"].keys() != weights.keys():
            raise ValueError("the figures kept are of other arms, or of another release")
        identities = dict(identities or {})
        if changed := [name for name in state["arms"] if state["identities"].get(name) != identities.get(name)]:
            raise ValueError(f"the figures kept are of another model: {', '.join(changed)} has changed")
        evidence = cls(control, state["weights"], levels, thresholds, identities, state["since"])
        evidence.latest, evidence.not_counted = state["latest"], state["not_counted"]
        evidence.failovers = Counter(state["failovers"])
        evidence.split_changes = state["split_changes"]
        evidence._seen = Seen.restored(state["seen"])
        evidence._turn = state["turn"]
        evidence.arms = {name: ArmEvidence.restored(arm, thresholds) for name, arm in state["arms"].items()}
        evidence.shadows = {
            name: ShadowEvidence.restored(state["shadows"][name], evidence.levels) for name in evidence.others
        }
        evidence.ratios = {name: SampleRatio.restored(state["ratios"][name]) for name in evidence.others}
        evidence.split_changed(time.time(), weights)
        return evidence
