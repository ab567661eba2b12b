"""The verdict as it is asked for: its line, its figures, and that a restart keeps it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import numpy as np
import pytest

from serve.ab.verdict import build
from serve.ab.verdict.aggregates import Aggregates
from serve.ab.verdict.collector import EventCollector
from serve.ab.verdict.event import Event, ShadowComparison
from serve.ab.verdict.schema import Verdict, VerdictSettings

WEIGHTS = {"dense": 50.0, "pruned": 50.0}
Observed = Callable[..., Event]
Compared = Callable[..., ShadowComparison]


def feed(
    collector: EventCollector, observed: Observed, compared: Compared, count: int = 900, faster: float = 0.88
) -> None:
    rng = np.random.default_rng(18)
    for place in range(count):
        mine = bool(rng.random() < 0.5)
        pace = faster if mine else 1.0
        collector.observe(
            observed(
                "pruned" if mine else "dense",
                key_hash=f"{rng.integers(2**63):016x}",
                reason="sticky",
                ttft_s=float(rng.gamma(16, 0.01 / 16)) * pace,
                itl_s=tuple((rng.gamma(4, 0.005 / 4, 19) * pace).tolist()),
                e2e_s=float(rng.gamma(50, 0.3 / 50)) * pace,
            )
        )
        if place % 5 == 0:
            collector.observe(compared(float(rng.beta(7, 3)), logprob_difference_nats=float(rng.normal(-0.1, 0.05))))


def test_the_verdict(observed: Observed, compared: Compared) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS, settings=VerdictSettings(minimal_effect=0.1))
    feed(collector, observed, compared)
    verdict = collector.verdict()
    comparison = verdict.comparisons[0]
    assert comparison.arm == "pruned"
    ratio = comparison.differences["ttft_ms"].ratio_interval
    assert ratio is not None
    assert ratio.low < 0.88 < ratio.high  # type: ignore[operator]
    assert comparison.differences["ttft_ms"].direction == "lower"
    assert comparison.differences["tokens_per_s"].direction == "higher"
    assert comparison.differences["output_tokens"].direction == "no different"
    assert comparison.error_rate.direction == "no different"
    assert comparison.shadow.agreement.mean == pytest.approx(0.7, abs=0.05)
    assert comparison.shadow.logprob_difference_nats.mean == pytest.approx(-0.1, abs=0.02)
    assert comparison.shadow.logprob_difference_nats.interval is not None
    assert not comparison.sample_ratio.mismatch
    assert comparison.sample_size.reached
    assert verdict.arms[0].figures["ttft_ms"].p50 == pytest.approx(10, rel=0.1)
    assert verdict.arms[1].finish_reasons == {"stop": verdict.arms[1].requests}
    assert verdict.notes == []
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_the_line_says_it(observed: Observed, compared: Compared) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS, settings=VerdictSettings(minimal_effect=0.01))
    assert collector.verdict().text == "pruned: no counted request yet"
    collector.observe(observed("pruned", ttft_s=0.01))
    collector.observe(observed("dense", ttft_s=0.01))
    assert collector.verdict().text.endswith("n=1, too few to say how many are needed")
    feed(collector, observed, compared)
    text = collector.verdict().text
    size = collector.verdict().comparisons[0].sample_size
    assert size.needed is not None
    assert not size.reached
    assert text.startswith("pruned: TTFT 1")
    assert " % lower (95 % CI " in text
    assert "errors no different (0.00% against 0.00%), agreement 0." in text
    assert text.endswith(f"n={size.have:,} of {size.needed:,} needed")
    assert "\n" not in text


def test_requests_lost_in_one_arm_are_said_before_anything_is_believed(observed: Observed) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    rng = np.random.default_rng(19)
    for draw, lost in rng.random((1500, 2)):
        if draw < 0.5 and lost < 0.4:
            continue
        collector.observe(observed("pruned" if draw < 0.5 else "dense"))
    verdict = collector.verdict()
    assert verdict.comparisons[0].sample_ratio.mismatch
    assert "do not believe the differences" in verdict.notes[0]
    assert verdict.text.endswith("SAMPLE RATIO MISMATCH, do not believe it")


def test_a_changed_split_is_noted(observed: Observed, compared: Compared) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    collector.split_changed({"dense": 95.0, "pruned": 5.0})
    verdict = collector.verdict()
    assert verdict.split_changes == 1
    assert "the split was changed once" in verdict.notes[0]
    assert [arm.share for arm in verdict.arms] == [0.95, 0.05]


def test_one_arm_alone_has_no_comparison(observed: Observed) -> None:
    collector = EventCollector("trial", "dense", {"dense": 1.0}, guardrails=["error_rate<1%"])
    collector.observe(observed("dense"))
    assert collector.verdict().comparisons == []
    assert "the only arm" in collector.verdict().text


def test_a_restart_goes_on(observed: Observed, compared: Compared) -> None:
    guardrails = ("error_rate<1%", "agreement>0.9")
    collector = EventCollector("trial", "dense", WEIGHTS, guardrails=guardrails)
    feed(collector, observed, compared)
    again = EventCollector("trial", "dense", WEIGHTS, guardrails=guardrails)
    again.restore(collector.state())
    assert again.verdict().model_copy(update={"time": 0.0}) == collector.verdict().model_copy(update={"time": 0.0})
    assert again.guardrail_check.breaks
    assert again.guardrail_check.breaks == collector.guardrail_check.breaks


def test_another_model_begins_anew_with_guardrails_that_act(
    observed: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it was drained: that must not silence the guardrail for the next one under the same name."""
    drained: list[str] = []

    def drain(arm: str, reason: str) -> bool:
        drained.append(arm)
        return True

    def of(model: str) -> EventCollector:
        identities = {"dense": "d", "pruned": model}
        return EventCollector(
            "trial", "dense", WEIGHTS, guardrails=["error_rate<1%"], drain=drain, identities=identities
        )

    first = of("one")
    for _ in range(50):
        first.observe(observed("pruned", outcome="timeout"))
    assert drained == ["pruned"]
    same = of("one")
    same.restore(first.state())
    assert same.guardrail_check.breaks[0].drained
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        other = of("two")
        other.restore(first.state())
    (line,) = caplog.records
    assert "begun anew: the figures kept are of another model: pruned has changed" in line.getMessage()
    assert (other.guardrail_check.breaks, other.aggregates.arms["pruned"].requests) == ([], 0)
    for _ in range(50):
        other.observe(observed("pruned", outcome="timeout"))
    assert drained == ["pruned"] * 2


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:50], lambda text: "{}", lambda text: '{"evidence": {}}', lambda text: "[]"]
)
def test_a_state_that_cannot_be_read_is_said_and_left(
    observed: Observed, compared: Compared, caplog: pytest.LogCaptureFixture, spoil: Callable[[str], str]
) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    collector.observe(observed())
    with caplog.at_level(logging.WARNING):
        collector.restore(spoil(collector.state()))
    assert "begun anew" in caplog.text
    assert collector.verdict().arms[0].requests == 1


def test_a_state_of_other_guardrails_is_left_but_one_of_another_split_is_not(
    observed: Observed, compared: Compared
) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    feed(collector, observed, compared, count=50)
    other = EventCollector("trial", "dense", WEIGHTS, guardrails=["agreement>0.5", "error_rate<1%"])
    other.restore(collector.state())
    assert other.verdict().arms[0].requests == 0
    moved = EventCollector("trial", "dense", {"dense": 1.0, "pruned": 3.0})
    moved.restore(collector.state())
    assert moved.verdict().split_changes == 1
    assert moved.verdict().arms[0].requests == collector.verdict().arms[0].requests
    json.loads(moved.state())


@pytest.mark.parametrize(("failures", "direction"), [(0, "no different"), (3, "no different"), (60, "higher")])
def test_few_errors_more_are_no_difference(observed: Observed, failures: int, direction: str) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    for place in range(300):
        collector.observe(observed("dense"))
        collector.observe(observed("pruned", outcome="timeout" if place < failures else "ok"))
    difference = collector.verdict().comparisons[0].error_rate
    assert difference.direction == direction
    assert difference.difference == pytest.approx(failures / 300)
    assert difference.interval is not None
    assert difference.interval.low < failures / 300 < difference.interval.high  # type: ignore[operator]
    assert difference.interval.high - difference.interval.low > 0.01  # type: ignore[operator]


def test_answers_that_wait_long_are_noted(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    collector.asked(0, "dense", "")
    collector.asked(1, "pruned", "")
    collector.observe(observed("pruned", sequence=1))
    assert collector.verdict().notes == []
    monkeypatch.setattr(build, "NOTED_WAIT_S", 0.0)
    assert "not in the figures yet: 1 that ended" in collector.verdict().notes[0]
    collector.observe(observed("dense", sequence=0))
    assert collector.verdict().notes == []


def test_requests_in_flight_at_a_reset_are_left_out(observed: Observed) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    collector.asked(0, "dense", "")
    collector.reset()
    collector.asked(1, "pruned", "")
    collector.observe(observed("dense", sequence=0))
    collector.observe(observed("pruned", sequence=1))
    assert [arm.requests for arm in collector.verdict().arms] == [0, 1]
    assert collector.verdict().not_counted == 1


def test_a_ramp_while_both_arms_begin_to_fail_is_no_difference(observed: Observed) -> None:
    """A tenth of the requests goes to the arm while neither fails, then half of them while both do."""
    rng = np.random.default_rng(25)
    collector = EventCollector("trial", "dense", {"dense": 90.0, "pruned": 10.0})
    for place, (draw, failure) in enumerate(rng.random((6000, 2))):
        share = 0.1 if place < 3000 else 0.5
        if place == 3000:
            collector.split_changed(WEIGHTS)
        failed = failure < 0.1 and place >= 3000
        arm = "pruned" if draw < share else "dense"
        collector.observe(observed(arm, outcome="timeout" if failed else "ok"))
        collector.observe(observed(arm, outcome="client_gone" if failed else "ok"))
    comparison = collector.verdict().comparisons[0]
    for difference in (comparison.error_rate, comparison.gave_up_rate):
        assert difference.direction == "no different"
        assert difference.difference == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("outcome", ["timeout", "client_gone"])
def test_one_client_that_always_fails_is_no_difference(observed: Observed, outcome: str) -> None:
    """300 clients; one has 5 % of the requests, and none of them succeeds, whichever arm it has."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        keys = [f"{key:016x}" for key in rng.integers(2**63, size=300)]
        mine = rng.random(300) < 0.5
        collector = EventCollector("trial", "dense", WEIGHTS)
        for client, special in zip(rng.integers(1, 300, 4000), rng.random(4000) < 0.05, strict=True):
            one = 0 if special else client
            ended = outcome if special else "ok"
            collector.observe(observed("pruned" if mine[one] else "dense", key_hash=keys[one], outcome=ended))
        comparison = collector.verdict().comparisons[0]
        assert (comparison.error_rate.direction, comparison.gave_up_rate.direction) == ("no different",) * 2


def test_a_few_clients_are_noted(observed: Observed) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    for place in range(600):
        arm = ("dense", "pruned")[place % 2]
        collector.observe(observed(arm, key_hash=f"{place % 4:08x}", outcome="timeout" if place % 4 == 1 else "ok"))
    verdict = collector.verdict()
    comparison = verdict.comparisons[0]
    assert {one.direction for one in (*comparison.differences.values(), comparison.error_rate)} == {"unknown"}
    assert [note.partition(":")[0] for note in verdict.notes] == [
        f"a few sticky keys have most of the requests of {arm}" for arm in ("dense", "pruned")
    ]
    assert "they say as much as 2 equal clients, and an interval needs 20 of each arm" in verdict.notes[0]


def test_too_many_keys_are_noted(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    assert collector.verdict().notes == []
    monkeypatch.setattr(Aggregates, "share_of_keys_missed", 0.512)
    assert collector.verdict().notes[0].startswith("51% of new sticky keys do not count for the sample ratio")


@pytest.mark.parametrize("nats", [-np.inf, np.nan, 1e300])
def test_no_log_probability_of_an_engine_breaks_the_verdict(
    observed: Observed, compared: Compared, nats: float
) -> None:
    collector = EventCollector("trial", "dense", WEIGHTS)
    for place in range(200):
        collector.observe(compared(0.5, logprob_difference_nats=nats if place == 7 else -0.1))
    figure = collector.verdict().comparisons[0].shadow.logprob_difference_nats
    assert (figure.requests, figure.mean) == (199, pytest.approx(-0.1))
    json.dumps(collector.verdict().model_dump(), allow_nan=False)
