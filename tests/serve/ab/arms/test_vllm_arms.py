"""`mi-prun-ab` before real engines: the dense bundled model, and a written checkpoint without some of its blocks."""

from __future__ import annotations

import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mi_prun.process_group import free_port

pytestmark = pytest.mark.engine

FLAGS = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8", "--dtype", "float32")
PROMPT = "The old man opened"


@pytest.fixture(scope="module")
def ab(
    reference: Path,
    pruned: Path,
    proxy_class: Any,
    nothing_left: Callable[..., bool],
    engine_cores: Callable[..., list[psutil.Process]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Two engines, started once for all tests here; at the end none of their processes is left."""
    folder = tmp_path_factory.mktemp("ab")
    words = ["--arm", f"dense={reference}", "--arm", f"pruned={pruned}", "--split", "dense=50,pruned=50"]
    proxy = proxy_class(
        folder, *words, "--model-name", "reference", "--", *FLAGS, port=free_port(), env={"VLLM_CPU_KVCACHE_SPACE": "1"}
    )
    try:
        proxy.wait_ready(400)
        processes = psutil.Process(proxy.group.process.pid).children(recursive=True)
        cores = engine_cores(processes)
        yield proxy
        proxy.group.process.send_signal(signal.SIGTERM)
        status = proxy.group.process.wait(90)
        all_ended = nothing_left([*processes, *proxy.group.processes()])  # before the group ends what is left
    finally:
        proxy.group.stop()
    assert status == 128 + signal.SIGTERM
    assert len(cores) >= 2  # of two servers
    assert all_ended


@pytest.fixture
def client(ab: Any, admin: dict[str, str]) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{ab.url}/v1", api_key=admin["Authorization"].removeprefix("Bearer "), max_retries=0)


def test_the_openai_client_asks_each_arm(ab: Any, client: Any) -> None:
    said: dict[str, str] = {}
    for arm in ("dense", "pruned"):
        fields = {"model": f"reference@{arm}", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        whole = client.completions.with_raw_response.create(**fields)
        assert whole.headers["x-mi-prun-arm"] == arm
        assert whole.parse().model == "reference"
        said[arm] = whole.parse().choices[0].text
        stream = client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == said[arm]
        assert chunks[-1].usage.completion_tokens == 24
    assert said["dense"] != said["pruned"]
    assert ab.call("/tokenize", {"prompt": PROMPT})[2]["count"] > 1
    assert "pruned" in ab.call("/health")[2]["arms"][1]["name"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_mirrored_request_tells_how_likely_the_other_arm_finds_the_answer(
    ab: Any, client: Any, admin: dict[str, str], stream: bool
) -> None:
    """The mean difference is what the shadow arm, asked by hand, says of the primary's tokens."""
    ab.experiment(weights={"dense": 1.0, "pruned": 0.0}, shadow_share=1.0)
    before = len(compared(ab))
    fields = {"model": "reference", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 1}
    if stream:
        choices = [chunk.choices[0] for chunk in client.completions.create(**fields, stream=True) if chunk.choices]
    else:
        choices = client.completions.create(**fields).choices
    ours = [value for choice in choices if choice.logprobs for value in choice.logprobs.token_logprobs]
    answer = "".join(choice.text for choice in choices)
    deadline = time.monotonic() + 60
    while len(compared(ab)) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    comparison = compared(ab)[-1]
    ab.experiment(shadow_share=0.0, weights={"pruned": 1.0})
    assert (comparison["primary_arm"], comparison["shadow_arm"], comparison.get("why")) == ("dense", "pruned", None)
    assert comparison["compared_tokens"] == 12
    assert 0.0 <= comparison["agreement"] <= 1.0

    headers = {**admin, "x-mi-prun-arm": "pruned"}
    prompt, whole = (
        ab.call("/tokenize", {"model": "reference", "prompt": text}, headers)[2]["tokens"]
        for text in (PROMPT, PROMPT + answer)
    )
    assert (len(whole) - len(prompt), whole[: len(prompt)]) == (12, prompt)
    body = {"model": "reference", "prompt": whole, "max_tokens": 1, "prompt_logprobs": 0}
    places = ab.call("/v1/completions", body, headers)[2]["choices"][0]["prompt_logprobs"][len(prompt) :]
    theirs = [place[str(token)]["logprob"] for place, token in zip(places, whole[len(prompt) :], strict=True)]
    wanted = sum(theirs) / 12 - sum(ours) / 12
    assert comparison["logprob_difference_nats"] == pytest.approx(wanted, abs=1e-3)
    assert abs(wanted) > 1e-2  # the pruned model is another one


def compared(ab: Any) -> list[dict[str, Any]]:
    return [line for line in ab.lines() if line["outcome"] == "compared"]


def test_the_engines_own_metrics_and_the_verdict(ab: Any, client: Any, admin: dict[str, str]) -> None:
    ab.experiment(weights={"dense": 1.0, "pruned": 1.0}, shadow_share=0.0)
    for _ in range(6):
        fields = {"model": "reference", "prompt": PROMPT, "max_tokens": 8, "stream_options": {"include_usage": True}}
        list(client.completions.create(**fields, stream=True))
    for arm in ("dense", "pruned"):
        with urllib.request.urlopen(f"{ab.url}/metrics/{arm}", timeout=30) as answer:
            text = answer.read().decode()
        names = {family.name for family in text_string_to_metric_families(text)}
        assert "vllm:generation_tokens" in names
    verdict = ab.call("/admin/verdict", None, admin)[2]
    arms = {arm["arm"]: arm for arm in verdict["arms"]}
    streamed = [arm for arm in arms.values() if arm["figures"]["ttft_ms"]["requests"]]
    assert sum(arm["requests"] for arm in streamed) >= 6
    for arm in streamed:
        assert arm["figures"]["ttft_ms"]["mean"] > 0
        assert 0 < arm["figures"]["output_tokens"]["mean"] <= 24
        assert arm["error_rate"]["mean"] == 0


def test_an_engine_that_is_killed_is_failed_over(ab: Any, client: Any, pruned: Path) -> None:
    """Last: it takes its time to come back, and nobody waits for that here."""
    ab.experiment(weights={"dense": 1.0, "pruned": 1.0})
    children = psutil.Process(ab.group.process.pid).children(recursive=True)
    server = next(child for child in children if "serve.cli" in child.cmdline() and str(pruned) in child.cmdline())
    server.kill()
    reasons = set()
    for number in range(12):
        answer = client.completions.with_raw_response.create(
            model="reference", prompt=PROMPT, max_tokens=2, user=f"user-{number}"
        )
        reasons.add((answer.headers["x-mi-prun-arm"], answer.headers["x-mi-prun-reason"]))
    assert reasons == {("dense", "sticky"), ("dense", "failover")}
