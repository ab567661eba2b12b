"""All that is kept of the requests: what the verdict and the guardrails are read from.

No request is kept, only sums, counts and quantiles, in constant memory. Requests count in the order in which they were
assigned (`assignment_order`), whatever order they end in. `state` and `restored` carry the sums over a restart; what
waited for an earlier request then is lost, in both arms alike.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.ab.verdict.assignment_order import AssignmentOrder
from serve.ab.verdict.event import ARM_FAULTS, LARGEST_NATS, Event, ShadowComparison
from serve.ab.verdict.quantiles import Quantiles
from serve.ab.verdict.quantities import QUANTITIES, known_finish_reason
from serve.ab.verdict.sample_ratio import SampleRatio, SeenKeys
from serve.ab.verdict.statistics import BoundedMean, Share
from serve.ab.verdict.sums import BUCKETS, Contrast, Sums
from serve.ab.verdict.token_counts import TokenCounts, incomparable

Threshold = tuple[str, float]  # a quantity, and a value of it
NO_TRIAL = ("client_error", "client_gone")  # says nothing of the arm's errors


def _size_bytes(event: Event) -> int:
    """Bytes that it takes while it waits, about."""
    return 750 + 32 * len(event.itl_s)


class ArmAggregates:
    """Sums of an arm's counted requests.

    above: how many values are above a threshold. ended_errors, ended_above: the same of all requests that ended, those
    that wait for an earlier one too. in_flight: counted requests that have not ended.
    """

    def __init__(self, thresholds: Sequence[Threshold] = ()) -> None:
        self.outcomes: Counter[str] = Counter()
        self.finish_reasons: Counter[str] = Counter()
        self.errors = Share()
        self.weighted_errors = Sums()  # the same, to be compared with another arm's
        self.gave_up = Share()  # clients that did not wait for the end
        self.weighted_gave_up = Sums()
        self.token_counts = TokenCounts()
        self.sums = {name: Sums() for name in QUANTITIES}
        self.quantiles = {name: Quantiles() for name in QUANTITIES}
        self.above = {threshold: Share() for threshold in thresholds}
        self.in_flight = 0
        self.ended = 0
        self.ended_errors = Share()
        self.ended_above = {threshold: Share() for threshold in thresholds}

    @property
    def requests(self) -> int:
        """Requests that were added."""
        return self.outcomes.total()

    @property
    def asked(self) -> int:
        """Counted requests that the arm was sent, ended or not."""
        return self.ended + self.in_flight

    def end(self, event: Event) -> None:
        """Take note of a request that ended, before it is its turn to be added."""
        self.in_flight -= 1
        self.ended += 1
        if event.outcome not in NO_TRIAL:
            self.ended_errors.add(event.outcome in ARM_FAULTS)
        self._add_above(self.ended_above, event)

    def add(self, event: Event, weight: float, bucket: int) -> None:
        """Add a request whose turn it is. weight: 1 / the probability that the split gave it to this arm."""
        self.outcomes[event.outcome] += 1
        if event.finish_reason:
            self.finish_reasons[known_finish_reason(event.finish_reason)] += 1
        if event.outcome not in NO_TRIAL:
            failed = event.outcome in ARM_FAULTS
            self.errors.add(failed)
            self.weighted_errors.add(float(failed), 1.0, weight, bucket)
        if event.outcome in ("ok", "client_gone"):
            gave_up = event.outcome == "client_gone"
            self.gave_up.add(gave_up)
            self.weighted_gave_up.add(float(gave_up), 1.0, weight, bucket)
        for name, quantity in QUANTITIES.items():
            if (y_x := quantity.y_x(event)) is not None:
                self.sums[name].add(*y_x, weight, bucket)
                self.quantiles[name].add(quantity.values(event), weight)
        self._add_above(self.above, event)
        self.token_counts.add(event)

    def _add_above(self, shares: Mapping[Threshold, Share], event: Event) -> None:
        for (name, limit), share in shares.items():
            for value in QUANTITIES[name].values(event):
                share.add(value > limit)

    def fewest_and_most_errors(self) -> tuple[Share, Share]:
        """Return the errors among all requests asked: were none in flight to fail, and were all."""
        return self._fewest_and_most(self.ended_errors)

    def fewest_and_most_above(self, threshold: Threshold) -> tuple[Share, Share]:
        """Return the values above the threshold: were none in flight to be above it, and were all."""
        return self._fewest_and_most(self.ended_above[threshold])

    def _fewest_and_most(self, ended: Share) -> tuple[Share, Share]:
        """Return a share below and one above that of all requests asked, in their order.

        Evidence against a bound only grows when a request in flight is known. So a test of the fewest against a bound
        from above, or of the most from below, is as valid as one that waits, and need not wait.
        """
        trials = ended.trials + self.in_flight
        return Share(ended.successes, trials), Share(ended.successes + self.in_flight, trials)

    def state(self) -> dict[str, Any]:
        """Return what JSON can hold; the names are those on disk."""
        return {
            "outcomes": dict(self.outcomes),
            "finish_reasons": dict(self.finish_reasons),
            "errors": self.errors.state(),
            "weighted_errors": self.weighted_errors.state(),
            "gave_up": self.gave_up.state(),
            "weighted_gave_up": self.weighted_gave_up.state(),
            "token_counts": self.token_counts.state(),
            "sums": {name: sums.state() for name, sums in self.sums.items()},
            "quantiles": {name: quantiles.state() for name, quantiles in self.quantiles.items()},
            "above": [[*threshold, share.state()] for threshold, share in self.above.items()],
        }

    @classmethod
    def restored(cls, state: dict[str, Any], thresholds: Sequence[Threshold] = ()) -> ArmAggregates:
        """Return the sums whose `state` this is. Raises ValueError or KeyError for other guardrails."""
        arm = cls()
        arm.outcomes = Counter(state["outcomes"])
        arm.finish_reasons = Counter(state["finish_reasons"])
        arm.errors, arm.gave_up = Share.restored(state["errors"]), Share.restored(state["gave_up"])
        arm.weighted_errors = Sums.restored(state["weighted_errors"])
        if "weighted_gave_up" in state:  # older releases had none
            arm.weighted_gave_up = Sums.restored(state["weighted_gave_up"])
        arm.token_counts = TokenCounts.restored(state.get("token_counts", {}))  # the release before had none
        arm.sums = {name: Sums.restored(state["sums"][name]) for name in QUANTITIES}
        arm.quantiles = {name: Quantiles.restored(state["quantiles"][name]) for name in QUANTITIES}
        arm.above = {(name, limit): Share.restored(share) for name, limit, share in state["above"]}
        if arm.above.keys() != set(thresholds):
            raise ValueError("the figures kept are of other guardrails")
        arm.ended = arm.requests
        arm.ended_errors = Share.restored(arm.errors.state())
        arm.ended_above = {threshold: Share.restored(share.state()) for threshold, share in arm.above.items()}
        return arm


class ShadowAggregates:
    """Sums of mirrored requests of an arm and the control.

    agreement: by level, since its bets depend on it. logprobs: shadow less primary, nats, where the control was the
    primary.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        self.errors = 0
        self.agreement = {level: BoundedMean(level) for level in levels}
        self.logprobs = Sums()

    @property
    def comparisons(self) -> int:
        return next(iter(self.agreement.values())).count

    def add(self, comparison: ShadowComparison, control: str, bucket: int) -> None:
        if comparison.error is not None or comparison.agreement is None:
            self.errors += 1
            return
        for mean in self.agreement.values():
            mean.add(comparison.agreement)
        nats = comparison.logprob_difference_nats
        if nats is not None and abs(nats) <= LARGEST_NATS and comparison.primary_arm == control:
            self.logprobs.add(nats, 1.0, 1.0, bucket)

    def state(self) -> dict[str, Any]:
        return {
            "errors": self.errors,
            "agreement": [mean.state() for mean in self.agreement.values()],
            "logprobs": self.logprobs.state(),
        }

    @classmethod
    def restored(cls, state: dict[str, Any], levels: Sequence[float]) -> ShadowAggregates:
        shadow = cls(levels)
        shadow.errors = state["errors"]
        shadow.agreement = {
            level: BoundedMean.restored(mean, level) for level, mean in zip(levels, state["agreement"], strict=True)
        }
        if math.isfinite(state["logprobs"]["yy"]):  # older releases added what was not finite
            shadow.logprobs = Sums.restored(state["logprobs"])
        return shadow


@dataclass(frozen=True)
class _Asked:
    """A counted request in flight, and the split that drew it."""

    arm: str
    split: Mapping[str, float]


class Aggregates:
    """The sums of all arms.

    control: the arm that the others are compared with. weights: of every arm, as the split has them now, of any sum.
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
        self.weights = dict(weights)
        self.identities = dict(identities or {})
        self.levels = tuple(dict.fromkeys(levels))
        self.since = time.time() if since is None else since
        self.arms = {name: ArmAggregates(thresholds) for name in weights}
        self.shadows = {name: ShadowAggregates(self.levels) for name in self.others}
        self.ratios = {name: SampleRatio() for name in self.others}
        self.not_counted = 0
        self.failovers: Counter[str] = Counter()  # by the arm that was left
        self.split_changes = 0
        self.latest = 0.0
        self.order: AssignmentOrder[tuple[Event, Mapping[str, float]]] = AssignmentOrder()
        self._comparison_order: AssignmentOrder[ShadowComparison] = AssignmentOrder()
        self._asked: dict[int, _Asked] = {}
        self._mirrored: set[int] = set()
        self._own_numbers = itertools.count(-1, -1)  # of requests that come without one
        self._seen = SeenKeys()
        self._turn = 0

    @property
    def others(self) -> list[str]:
        return [name for name in self.arms if name != self.control]

    def split_changed(self, weights: Mapping[str, float]) -> None:
        """Draw the requests that are asked from now on by these weights."""
        if dict(weights) != self.weights:
            self.weights = dict(weights)
            self.split_changes += 1

    def asked(self, sequence: int, arm: str, key_hash: str) -> None:
        """Register a counted request when the arm it was assigned to is asked.

        Its client counts for the sample ratio now: when it ends depends on the arm. An arm without weight was not drawn
        by the split, and its request is not counted.
        """
        if self.weights.get(arm, 0.0) <= 0:
            return
        self._asked[sequence] = _Asked(arm, self.weights)
        self.arms[arm].in_flight += 1
        self.order.begin(sequence)
        self._comparison_order.begin(sequence)
        if not key_hash or self._seen.is_new(key_hash):
            self._count_client(arm)

    @property
    def share_of_keys_missed(self) -> float:
        """The share of new keys that are taken for known ones, and do not count for the sample ratio."""
        return self._seen.share_set

    def mirrored(self, sequence: int) -> None:
        """Await a comparison of this request."""
        if sequence in self._asked:
            self._mirrored.add(sequence)

    def lost(self, sequence: int) -> None:
        """Await no event of this request any more."""
        if (asked := self._asked.pop(sequence, None)) is not None:
            self.arms[asked.arm].in_flight -= 1
            self._add_all(self.order.end(sequence, None))
            self._compare_all(self._comparison_order.end(sequence, None))

    def observe(self, event: Event | ShadowComparison) -> set[str]:
        """Take in what ended; return the arms of which more is known now.

        An event without a number is taken as asked and ended at once.
        """
        if isinstance(event, ShadowComparison):
            return self._end_comparison(event)
        if event.reason == "failover" and event.assigned_arm in self.arms:
            self.failovers[event.assigned_arm] += 1
        if not event.counted or event.arm != event.assigned_arm or event.arm not in self.arms:
            self.not_counted += 1
            if event.sequence is not None and event.arm == event.assigned_arm:
                self.lost(event.sequence)  # asked, but its answer could not be read
            return {event.arm}
        sequence = event.sequence
        if sequence is None:
            sequence = next(self._own_numbers)
            self.asked(sequence, event.arm, event.key_hash)
        asked = self._asked.pop(sequence, None)
        if asked is None:  # drawn by no split, or before a reset
            self.not_counted += 1
            return {event.arm}
        self.arms[event.arm].end(event)
        arms = self._add_all(self.order.end(sequence, (event, asked.split), _size_bytes(event)))
        if sequence not in self._mirrored:
            arms |= self._compare_all(self._comparison_order.end(sequence, None))
        return arms | {event.arm}

    def _add_all(self, items: Sequence[tuple[Event, Mapping[str, float]]]) -> set[str]:
        for event, split in items:
            self.latest = max(self.latest, event.time)
            weight = sum(split.values()) / split[event.arm]
            self.arms[event.arm].add(event, weight, self._bucket(event.key_hash))
        return {event.arm for event, _ in items}

    def _end_comparison(self, comparison: ShadowComparison) -> set[str]:
        sequence = comparison.sequence
        if sequence is None:
            sequence = next(self._own_numbers)
            self._comparison_order.begin(sequence)
        self._mirrored.discard(sequence)
        arms = self._compare_all(self._comparison_order.end(sequence, comparison))
        return arms | {comparison.shadow_arm, comparison.primary_arm}

    def _compare_all(self, comparisons: Sequence[ShadowComparison]) -> set[str]:
        arms: set[str] = set()
        for comparison in comparisons:
            pair = (comparison.shadow_arm, comparison.primary_arm)
            for name in pair:
                if name in self.shadows and self.control in pair:
                    self.shadows[name].add(comparison, self.control, self._bucket(""))
            arms.update(pair)
        return arms

    def _count_client(self, arm: str) -> None:
        for name, ratio in self.ratios.items():
            pair = self.weights[name] + self.weights[self.control]
            if arm in (name, self.control) and 0 < self.weights[name] < pair:
                ratio.add(arm == name, self.weights[name] / pair)

    def _bucket(self, key_hash: str) -> int:
        if key_hash:
            return int(key_hash[:8], 16) % BUCKETS
        self._turn += 1
        return self._turn % BUCKETS

    def incomparable(self, arm: str) -> dict[str, str]:
        """Return the quantities in which an arm and the control cannot be compared, each with the reason."""
        return incomparable(self.arms[arm].token_counts, self.arms[self.control].token_counts)

    def contrast(self, arm: str, quantity: str) -> Contrast:
        """Return the difference of an arm and the control; an unknown one where the two cannot be compared."""
        if quantity in self.incomparable(arm):
            return Contrast(Sums(), Sums())
        return Contrast(self.arms[arm].sums[quantity], self.arms[self.control].sums[quantity])

    def state(self) -> dict[str, Any]:
        """Return what JSON can hold; the names are those on disk."""
        return {
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
    ) -> Aggregates:
        """Return the sums whose `state` this is.

        Raises ValueError or KeyError for other arms or models, another control or other levels.
        """
        if state["control"] != control or state["arms"].keys() != weights.keys():
            raise ValueError("the figures kept are of other arms, or of another release")
        identities = dict(identities or {})
        if changed := [name for name in state["arms"] if state["identities"].get(name) != identities.get(name)]:
            raise ValueError(f"the figures kept are of another model: {', '.join(changed)} has changed")
        aggregates = cls(control, state["weights"], levels, thresholds, identities, state["since"])
        aggregates.latest, aggregates.not_counted = state["latest"], state["not_counted"]
        aggregates.failovers = Counter(state["failovers"])
        aggregates.split_changes = state["split_changes"]
        aggregates._seen = SeenKeys.restored(state["seen"])
        aggregates._turn = state["turn"]
        aggregates.arms = {name: ArmAggregates.restored(arm, thresholds) for name, arm in state["arms"].items()}
        aggregates.shadows = {
            name: ShadowAggregates.restored(state["shadows"][name], aggregates.levels) for name in aggregates.others
        }
        aggregates.ratios = {name: SampleRatio.restored(state["ratios"][name]) for name in aggregates.others}
        aggregates.split_changed(weights)
        return aggregates
