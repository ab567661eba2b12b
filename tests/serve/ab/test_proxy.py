"""The way of a request: assigned, asked, passed on byte for byte."""

from __future__ import annotations

from typing import Any


def test_an_answer_names_its_arm_and_why(proxy: Any) -> None:
    status, headers, answer = proxy.ask(max_tokens=3)
    assert status == 200
    assert headers["x-mi-prun-arm"] in ("dense", "pruned")
    assert headers["x-mi-prun-reason"] == "split"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_sticky_key_stays(proxy: Any) -> None:
    arms = {
        user: {proxy.ask(user=user)[1]["x-mi-prun-arm"] for _ in range(3)}
        for user in ("ann", "bob", "cat", "dan", "eve")
    }
    assert all(len(found) == 1 for found in arms.values())
