"""What an arm is sent, what is counted, and who is to blame for a status."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.ab.arms.arm import Arm
from serve.ab.config import ArmConfig, Health
from serve.ab.experiment.experiment import Assignment
from serve.ab.proxy.admitted_request import AdmittedRequest, Blame
from serve.ab.proxy.deadline import Deadline
from serve.ab.proxy.parsed_request import parse_request


def arm(name: str = "dense", key: str | None = None, **config: Any) -> Arm:
    made = Arm(name, ArmConfig(url=f"http://{name}", **config), Health())
    made.key = key
    return made


def admitted(path: str = "/v1/completions", reason: Any = "split", client_key: bytes | None = None) -> AdmittedRequest:
    async def make() -> AdmittedRequest:
        parsed = parse_request(path, b'{"model": "m"}', ["m"], {})
        assignment = Assignment(("dense", "pruned"), reason, "")
        return AdmittedRequest(Deadline(), parsed, assignment, [(b"x-a", b"1")], client_key, None)  # type: ignore[arg-type]

    return asyncio.run(make())


@pytest.mark.parametrize(
    ("key", "client_key", "sent"),
    [
        (None, None, None),
        (None, b"Bearer own", b"Bearer own"),
        ("arms", None, b"Bearer arms"),
        ("arms", b"Bearer own", b"Bearer arms"),
    ],
)
def test_an_arms_own_key_goes_before_the_clients(key: str | None, client_key: bytes | None, sent: bytes | None) -> None:
    headers, body = admitted(client_key=client_key).for_arm(arm(key=key))
    assert dict(headers).get(b"authorization") == sent
    assert dict(headers)[b"x-a"] == b"1"
    assert body == b'{"model": "m"}'


def test_an_arm_of_another_name_is_asked_by_it() -> None:
    assert admitted().for_arm(arm(upstream_model="its-own"))[1] == b'{"model": "its-own"}'


@pytest.mark.parametrize(
    ("path", "reason", "name", "at", "counted"),
    [
        ("/v1/completions", "split", "dense", "split", True),
        ("/v1/completions", "sticky", "dense", "sticky", True),
        ("/v1/completions", "split", "pruned", "failover", False),
        ("/v1/completions", "explicit", "dense", "explicit", False),
        ("/v1/completions", "paused", "dense", "paused", False),
        ("/tokenize", "split", "dense", "split", False),
    ],
)
def test_what_counts(path: str, reason: str, name: str, at: str, counted: bool) -> None:
    request = admitted(path, reason)
    assert (request.reason_at(arm(name)), request.counted_at(arm(name))) == (at, counted)


@pytest.mark.parametrize(
    ("status", "ours", "theirs"),
    [
        (200, Blame.NOBODY, Blame.NOBODY),
        (400, Blame.NOBODY, Blame.NOBODY),
        (401, Blame.ARM, Blame.UNCLEAR),
        (403, Blame.ARM, Blame.UNCLEAR),
        (404, Blame.UNCLEAR, Blame.UNCLEAR),
        (405, Blame.UNCLEAR, Blame.UNCLEAR),
        (408, Blame.ARM, Blame.ARM),
        (422, Blame.NOBODY, Blame.NOBODY),
        (429, Blame.ARM, Blame.UNCLEAR),
        (500, Blame.ARM, Blame.ARM),
        (503, Blame.ARM, Blame.ARM),
    ],
)
def test_blame(status: int, ours: Blame, theirs: Blame) -> None:
    """With the proxy's key, and with the client's own."""
    assert admitted(client_key=b"Bearer own").blame(arm(key="arms"), status) is ours
    assert admitted().blame(arm(), status) is ours
    assert admitted(client_key=b"Bearer own").blame(arm(), status) is theirs
