"""The verdict, the guardrails and the metrics of a running proxy, before fake engines."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mi_prun.errors import UserError
from serve.ab.cli import command


def read(url: str) -> tuple[int, str, str]:
    """Status, content type and text."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read().decode()


def admin_call(url: str, admin: dict[str, str], method: str = "GET") -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=admin, method=method), timeout=30) as answer:
        answered: dict[str, Any] = json.load(answer)
        return answered


def test_metrics_of_the_proxy(proxy: Any) -> None:
    for _ in range(5):
        proxy.ask(max_tokens=3)
    status, content_type, text = read(f"{proxy.url}/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counted = sum(sample.value for sample in families["mi_prun_ab_requests"].samples)
    assert counted >= 5
    assert {sample.labels["arm"] for sample in families["mi_prun_ab_arm_up"].samples} == {"dense", "pruned"}


def test_an_engines_own_metrics_by_arm(proxy: Any) -> None:
    status, content_type, text = read(f"{proxy.url}/metrics/pruned")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert text.startswith("vllm:request_success_total")
    assert read(f"{proxy.url}/metrics/nobody")[0] == 404
    assert read(f"{proxy.url}/metrics/..%2F..%2Fadmin")[0] == 404


def test_trace_context_is_passed_on_and_none_is_made_up(
    proxy: Any, shared_fakes: list[Any], admin: dict[str, str]
) -> None:
    """W3C trace context and baggage: the engine's spans are children of the caller's."""
    sent = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=1,other=2",
        "baggage": "user=ann",
    }
    proxy.ask({**admin, **sent, "x-mi-prun-arm": "pruned"}, max_tokens=1)
    seen = shared_fakes[1].seen()["last"]["headers"]
    assert {name: seen.get(name) for name in sent} == sent
    proxy.ask({**admin, "x-mi-prun-arm": "pruned"}, max_tokens=1)
    assert not sent.keys() & shared_fakes[1].seen()["last"]["headers"].keys()


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"Authorization": "Bearer other-key"}, 401)])
@pytest.mark.parametrize(("method", "path"), [("GET", "/admin/verdict"), ("POST", "/admin/verdict/reset")])
def test_the_verdict_is_the_operators(proxy: Any, headers: dict[str, str], status: int, method: str, path: str) -> None:
    request = urllib.request.Request(f"{proxy.url}{path}", headers=headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == status


def test_a_guardrail_drains_the_arm_says_so_and_a_restart_keeps_it(
    start_fakes: Callable[..., Any], start_proxy: Callable[..., Any], admin: dict[str, str]
) -> None:
    fakes = start_fakes("dense", "pruned")
    proxy = start_proxy(fakes, "--split", "dense=50,pruned=50", "--guardrail", "error_rate<1%")
    fakes[1].set(status=500)
    arms = [proxy.ask(max_tokens=2)[1].get("x-mi-prun-arm") for _ in range(60)]
    assert set(arms) == {"dense"}  # every failure was made good by the other arm
    state = proxy.experiment()["state"]
    assert state["weights"] == {"dense": 50.0, "pruned": 0.0}
    assert (state["who"], state["version"]) == ("guardrail", 2)
    verdict = admin_call(f"{proxy.url}/admin/verdict", admin)
    assert "guardrail error_rate<1% BROKEN, weight set to 0" in verdict["text"]
    assert verdict["comparisons"][0]["guardrails"][0]["drained"] is True
    pruned = verdict["arms"][1]
    assert pruned["outcomes"] == {"upstream_error": pruned["requests"]}
    assert pruned["failed_over"] >= pruned["requests"] > 0
    assert "pruned: guardrail error_rate<1% is broken" in proxy.log.read_text()

    proxy.group.stop()
    again = start_proxy(fakes, "--split", "dense=50,pruned=50", "--guardrail", "error_rate<1%")
    kept = admin_call(f"{again.url}/admin/verdict", admin)
    assert kept["arms"] == verdict["arms"]
    assert kept["since"] == verdict["since"]
    assert kept["comparisons"][0]["guardrails"][0]["standing"] == "broken"

    # An operator's word stands: it was said once.
    fakes[1].set()
    again.experiment(weights={"pruned": 50})
    for _ in range(10):
        again.ask(max_tokens=2)
    assert again.experiment()["state"]["weights"]["pruned"] == 50

    fresh = admin_call(f"{again.url}/admin/verdict/reset", admin, "POST")
    assert [arm["requests"] for arm in fresh["arms"]] == [0, 0]
    assert fresh["comparisons"][0]["guardrails"][0]["standing"] == "undecided"

    fakes[1].stop()
    status, _, text = read(f"{again.url}/metrics/pruned")
    assert status == 502
    assert "arm pruned does not say its metrics" in text


def test_the_command_prints_it(
    proxy: Any, admin: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.ask(max_tokens=2)
    monkeypatch.setenv("MI_PRUN_AB_ADMIN_KEY", admin["Authorization"].removeprefix("Bearer "))
    command(["verdict", "--url", proxy.url])
    said = capsys.readouterr().out
    assert said.startswith("pruned: ")
    assert "ttft_ms" in said
    command(["verdict", "--url", proxy.url, "--json"])
    assert json.loads(capsys.readouterr().out)["control"] == "dense"
    monkeypatch.setenv("MI_PRUN_AB_ADMIN_KEY", "wrong-key")
    with pytest.raises(UserError, match="wants the admin key"):
        command(["verdict", "--url", proxy.url])
    with pytest.raises(UserError, match="no mi-prun-ab answers at"):
        command(["verdict", "--url", "http://127.0.0.1:9"])
    with pytest.raises(UserError, match="answered with status 404: is it a mi-prun-ab"):
        command(["verdict", "--url", f"{proxy.url}/elsewhere"])
