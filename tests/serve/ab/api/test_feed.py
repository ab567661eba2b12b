"""What the page asks for, on the real proxy before fake engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve.ab.api.feed import PRUNING_BYTES

HEALING = {
    "method": "fit",
    "text": "wiki.txt",
    "tokens": 0,
    "fit_tokens": 64,
    "seconds": 3.0,
    "seed": 2,
    "quality": [{"text": "w", "dense_perplexity": 4, "pruned_perplexity": 9, "healed_perplexity": 6, "more": 1}],
}
SAID = {"pruned": True, "dropped_blocks": [1], "kept_blocks": [0, 2], "method": "by hand", "settings": {"a": 1}}


@pytest.fixture
def fakes(shared_fakes: list[Any]) -> Iterator[list[Any]]:
    yield shared_fakes
    for fake in shared_fakes:
        fake.set()


@pytest.mark.parametrize("path", ["/admin/live", "/admin/pruning"])
def test_only_the_admin_key_opens_it(proxy: Any, path: str) -> None:
    assert proxy.call(path)[0] == 401
    assert proxy.call(path, None, {"Authorization": "Bearer another-key"})[0] == 401


def test_live_figures_are_of_what_was_answered(proxy: Any, admin: dict[str, str]) -> None:
    before = proxy.call("/admin/live", None, admin)[2]["now"]["pruned"]["requests"]
    for _ in range(3):
        assert proxy.ask(admin, model="the-model@pruned")[0] == 200
    status, _, figures = proxy.call("/admin/live", None, admin)
    assert status == 200
    assert figures["now"]["pruned"]["requests"] == before + 3
    assert list(figures["series"]) == ["dense", "pruned"]
    assert {len(series["requests"]) for series in figures["series"].values()} == {len(figures["time_s"])}


def test_pruning_is_what_each_arm_says(proxy: Any, admin: dict[str, str], fakes: list[Any]) -> None:
    def told() -> dict[str, Any]:
        status, _, answer = proxy.call("/admin/pruning", None, admin)
        assert status == 200
        return {arm.pop("name"): arm for arm in answer["arms"]}

    fakes[1].set(pruning=SAID)
    arms = told()
    assert arms["dense"] == {"pruning": None, "error": None}  # an engine of another kind
    assert arms["pruned"]["pruning"]["dropped_blocks"] == [1]
    assert "settings" not in arms["pruned"]["pruning"]
    assert arms["pruned"]["pruning"]["healing"] is None
    fakes[1].set(pruning={**SAID, "healing": HEALING})
    healing = told()["pruned"]["pruning"]["healing"]
    assert (healing["method"], healing["text"], healing["fit_tokens"], healing["seed"]) == ("fit", "wiki.txt", 64, 2)
    assert healing["quality"][0]["healed_perplexity"] == 6
    for odd in ({"pruned": "perhaps"}, {**SAID, "dropped_blocks": [-1]}, {**SAID, "x": "y" * PRUNING_BYTES}):
        fakes[1].set(pruning=odd)
        assert told()["pruned"]["pruning"] is None
        assert "not what mi-prun-serve says" in told()["pruned"]["error"]


def test_an_arm_that_is_gone_is_said(
    start_fakes: Callable[..., list[Any]], start_proxy: Callable[..., Any], admin: dict[str, str]
) -> None:
    fakes = start_fakes("dense", "pruned")
    proxy = start_proxy(fakes)
    fakes[1].stop()
    arms = proxy.call("/admin/pruning", None, admin)[2]["arms"]
    assert [arm["error"] for arm in arms] == [None, "its engine does not answer"]
