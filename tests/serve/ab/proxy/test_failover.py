"""Which arm answers when others do not, and whose fault that was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serve.ab.proxy.deadline import Abort
from serve.ab.wire.upstream import UpstreamError

OWN_KEY = {"authorization": "Bearer the-clients-own"}
OPERATOR = {"authorization": "Bearer an-admin-key"}


@pytest.fixture
def pair(proxied: Callable[..., Any]) -> Any:
    proxy = proxied()
    proxy.say("dense", b"of dense")
    proxy.say("pruned", b"of pruned")
    return proxy


def test_the_assigned_arm_answers_and_no_other_is_asked(pair: Any) -> None:
    response = pair.ask()
    assert (response.status, response.body, response.arm) == (200, b"of dense", ("dense", "split"))
    assert pair.upstream.asked == ["dense"]
    assert pair.service.failovers == {}


@pytest.mark.parametrize("lost", ["before its head", "before its body"])
def test_an_arm_that_does_not_begin_is_replaced(pair: Any, lost: str) -> None:
    """The attempt that failed is in dense's figures; the failover is in nobody's."""
    if lost == "before its head":
        pair.fail("dense")
    else:
        pair.say("dense", UpstreamError("the connection was lost"))
    response = pair.ask()
    assert (response.status, response.body, response.arm) == (200, b"of pruned", ("pruned", "failover"))
    assert pair.outcomes() == [("dense", 0, "upstream_error"), ("pruned", 200, "ok")]
    assert [event.counted for event in pair.events] == [True, False]
    assert [event.assigned_arm for event in pair.events] == ["dense", "dense"]
    assert pair.service.failovers == {"dense": 1}


def test_where_no_arm_answers_the_last_one_is_told_of(pair: Any) -> None:
    pair.fail("dense")
    pair.fail("pruned", "it did not accept a connection within 5 s")
    response = pair.ask()
    assert response.status == 502
    said = "no arm answered; the last one, pruned: it did not accept a connection within 5 s"
    assert (response.error["message"], response.error["code"]) == (said, "no_arm")
    assert pair.service.refusals == {502: 1}


def test_a_failing_arm_is_asked_until_its_circuit_opens(pair: Any) -> None:
    pair.say("dense", b"{}", status=503)
    for _ in range(6):
        assert pair.ask().arm == ("pruned", "failover")
    assert pair.upstream.asked.count("dense") == pair.config.health.failures
    assert pair.service.arms["dense"].breaker.state == "open"


def test_a_trial_closes_the_circuit(pair: Any) -> None:
    """The engine answers its probes all the while."""
    dense = pair.service.arms["dense"]
    pair.say("dense", b"{}", status=404)
    for _ in range(3):
        assert pair.ask().arm == ("pruned", "failover")
    assert dense.breaker.state == "open"
    pair.say("dense", b"of dense")
    assert pair.ask().arm == ("pruned", "failover")
    dense.breaker._clock = lambda: dense.breaker._until
    assert pair.ask().arm == ("dense", "split")
    assert dense.breaker.state == "closed"
    assert dense.healthy


def test_where_no_arm_is_well_the_assigned_one_is_asked_all_the_same(pair: Any) -> None:
    for arm in pair.service.arms.values():
        arm.went_down()
    assert pair.ask().arm == ("dense", "split")


def test_an_arm_without_an_engine_is_not_asked(pair: Any) -> None:
    pair.service.arms["dense"].base_url = None
    assert pair.ask().arm == ("pruned", "failover")
    pair.service.arms["pruned"].base_url = None
    response = pair.ask()
    assert (response.status, response.error["message"]) == (503, "no engine is up yet")
    assert response.headers["retry-after"] == "1"


def test_an_operators_choice_is_asked_alone(pair: Any) -> None:
    pair.fail("pruned")
    response = pair.ask(headers={**OPERATOR, "x-mi-prun-arm": "pruned"})
    assert (response.status, pair.upstream.asked) == (502, ["pruned"])
    assert [event.counted for event in pair.events] == [False]


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 429, 500, 503])
def test_what_one_arm_refuses_and_the_other_does_not_is_its_fault(pair: Any, status: int) -> None:
    pair.say("dense", b"{}", status=status)
    assert pair.ask().arm == ("pruned", "failover")
    assert sorted(pair.outcomes()) == [("dense", status, "upstream_error"), ("pruned", 200, "ok")]
    pair.say("dense", b"of dense")
    assert pair.ask().arm == ("dense", "split")


@pytest.mark.parametrize(
    ("status", "headers", "asked"),
    [
        (400, {}, ["dense"]),
        (422, {}, ["dense"]),
        (404, {}, ["dense", "pruned"]),
        (405, {}, ["dense", "pruned"]),
        (429, OWN_KEY, ["dense", "pruned"]),
        (401, OWN_KEY, ["dense", "pruned"]),
    ],
)
def test_what_every_arm_refuses_is_the_requests_fault(
    pair: Any, status: int, headers: dict[str, str], asked: list[str]
) -> None:
    for arm in ("dense", "pruned"):
        pair.say(arm, b'{"error": {"message": "as told"}}', status=status)
    for _ in range(4):
        response = pair.ask(headers=headers)
        assert (response.status, response.error["message"]) == (status, "as told")
    assert sorted(pair.outcomes()) == [(arm, status, "client_error") for arm in asked for _ in range(4)]
    assert [arm.breaker.state for arm in pair.service.arms.values()] == ["closed", "closed"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_proxys_own_key_is_not_passed_on(pair: Any, status: int) -> None:
    """Whose key is fine is not told that it is wrong."""
    for arm in ("dense", "pruned"):
        pair.say(arm, b"{}", status=status)
    response = pair.ask()
    assert response.status == 502
    assert response.error["message"] == f"no arm answered; the last one, pruned: status {status}"


def test_a_failure_that_is_the_last_arms_is_passed_on(pair: Any) -> None:
    for arm in ("dense", "pruned"):
        pair.say(arm, b'{"error": {"message": "as told"}}', status=503)
    response = pair.ask()
    assert (response.status, response.arm) == (503, ("pruned", "failover"))
    assert pair.outcomes() == [("dense", 503, "upstream_error"), ("pruned", 503, "upstream_error")]


def test_a_path_that_one_engine_lacks_is_no_fault_of_it(pair: Any) -> None:
    pair.say("dense", b"{}", status=404)
    for _ in range(4):
        assert pair.ask("/v1/embeddings").arm == ("pruned", "failover")
    assert {outcome for outcome in pair.outcomes() if outcome[0] == "dense"} == {("dense", 404, "client_error")}
    assert pair.service.arms["dense"].breaker.state == "closed"


def test_two_refusals_that_differ_are_the_first_arms_fault(pair: Any) -> None:
    pair.say("dense", b"{}", status=404)
    pair.say("pruned", b"{}", status=400)
    assert pair.ask().status == 400
    assert pair.outcomes() == [("dense", 404, "upstream_error"), ("pruned", 400, "client_error")]


def test_a_second_arm_that_fails_says_nothing_of_the_first_ones_refusal(pair: Any) -> None:
    pair.say("dense", b"{}", status=404)
    pair.say("pruned", b"{}", status=500)
    assert pair.ask().status == 500
    assert sorted(pair.outcomes()) == [("dense", 404, "client_error"), ("pruned", 500, "upstream_error")]


async def waiting(pair: Any, client_class: Any) -> tuple[Any, asyncio.Task[None]]:
    """Ask for what `dense` does not begin to answer: the client and the task that serves it."""
    pair.say("dense", asyncio.Event().wait)
    client = client_class(b'{"prompt": "x"}')
    task = pair.start(client)
    while pair.upstream.asked != ["dense"]:
        await asyncio.sleep(0)
    return client, task


def test_an_arm_that_goes_down_meanwhile_is_left(pair: Any, client_class: Any) -> None:
    async def run() -> Any:
        client, task = await waiting(pair, client_class)
        assert pair.service.arms["dense"].in_flight == 1
        pair.service.arms["dense"].went_down()
        await task
        return client.response

    assert asyncio.run(run()).arm == ("pruned", "failover")
    assert pair.outcomes() == [("dense", 0, "timeout"), ("pruned", 200, "ok")]
    assert pair.service.arms["dense"].in_flight == 0


@pytest.mark.parametrize("alone", [False, True])
def test_an_arm_that_does_not_begin_in_time_is_left(pair: Any, client_class: Any, alone: bool) -> None:
    if alone:
        pair.service.arms["pruned"].went_down()

    async def run() -> Any:
        client, task = await waiting(pair, client_class)
        (deadline,) = pair.service.deadlines.open
        limit_s = pair.config.limits.first_byte_s
        pair.service.deadlines.sweep(deadline.since_s + limit_s - 0.1)
        await asyncio.sleep(0)
        assert not task.done()
        pair.service.deadlines.sweep(deadline.since_s + limit_s + 0.1)
        await task
        return client.response

    response = asyncio.run(run())
    assert pair.outcomes()[0] == ("dense", 0, "timeout")
    if alone:
        said = "no arm answered; the last one, dense: first_byte_timeout"
        assert (response.status, response.error["message"]) == (504, said)
    else:
        assert response.arm == ("pruned", "failover")


def test_a_client_that_leaves_ends_the_search(pair: Any, client_class: Any) -> None:
    async def run() -> Any:
        client, task = await waiting(pair, client_class)
        client.leave()
        await task
        return client.response

    response = asyncio.run(run())
    assert (response.status, response.parts) == (0, [])
    assert pair.outcomes() == [("dense", 0, "client_gone")]
    assert pair.upstream.asked == ["dense"]
    assert [answer.closed for answer in pair.upstream.answers] == [1]
    assert pair.service.arms["dense"].breaker.state == "closed"


def test_the_end_of_the_server_leaves_no_request_counted(pair: Any, client_class: Any) -> None:
    async def run() -> None:
        _, task = await waiting(pair, client_class)
        task.cancel()
        await task

    asyncio.run(run())
    assert pair.service.arms["dense"].in_flight == 0
    assert not pair.service.deadlines.open
    assert [answer.closed for answer in pair.upstream.answers] == [1]


def test_the_reasons_of_an_abort_say_whether_time_was_up() -> None:
    timed_out = {abort.value for abort in Abort if abort.timed_out}
    assert timed_out == {"request_timeout", "first_byte_timeout", "idle_timeout", "send_timeout"}
