"""The proxy tells the collector of a request when it asks an arm, and the verdict waits for it."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from serve.ab.experiment.split import ranking

EVEN = {"dense": 50.0, "pruned": 50.0}


def key_of(arm: str) -> str:
    """A sticky key that the split gives to this arm."""
    return next(key for key in map(str, itertools.count()) if ranking("default", key, EVEN)[0] == arm)


def test_answers_wait_for_an_earlier_one_and_clients_do_not(
    start_fakes: Callable[..., list[Any]], start_proxy: Callable[..., Any], admin: dict[str, str]
) -> None:
    fakes = start_fakes("dense", "pruned")
    proxy = start_proxy(fakes, "--split", "dense=50,pruned=50")

    def ask(arm: str) -> None:
        status, headers, _ = proxy.ask({"x-mi-prun-sticky": key_of(arm)}, max_tokens=2)
        assert (status, headers["x-mi-prun-arm"]) == (200, arm)

    def counted() -> tuple[list[int], int]:
        _, _, verdict = proxy.call("/admin/verdict", None, admin)
        return [arm["requests"] for arm in verdict["arms"]], verdict["comparisons"][0]["sample_ratio"]["clients"]

    def in_flight() -> int:
        return int(sum(arm["in_flight"] for arm in proxy.call("/health")[2]["arms"]))

    ask("dense")
    assert counted() == ([1, 0], 1)
    fakes[0].signal(signal.SIGSTOP)
    slow = threading.Thread(target=ask, args=("dense",))
    slow.start()
    while in_flight() == 0:
        time.sleep(0.02)
    for _ in range(3):
        ask("pruned")
    assert counted() == ([1, 0], 2)
    fakes[0].signal(signal.SIGCONT)
    slow.join()
    assert counted() == ([2, 3], 2)
