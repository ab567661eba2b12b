"""What Prometheus is told: readable, bounded, conventionally named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve.ab.api.app import create_app
from serve.ab.api.metrics import ITL_S, GapHistogram, Metrics
from serve.ab.config import Config
from serve.ab.proxy.service import Service
from serve.ab.verdict.event import Event, ShadowComparison

GRAFANA = Path(__file__).parents[4] / "serve" / "ab" / "api" / "grafana.json"
Observed = Callable[..., Event]
Compared = Callable[..., ShadowComparison]


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    config = Config.model_validate(
        {
            "arms": {"dense": {"url": "http://127.0.0.1:1"}, "pruned": {"url": "http://127.0.0.1:2"}},
            "split": {"dense": 3, "pruned": 1},
            "model_name": "m",
            "guardrails": ["error_rate<1%"],
            "state": tmp_path / "ab.sqlite",
            "access_log": tmp_path / "access.jsonl",
        }
    )
    return create_app(config)


@pytest.fixture
def service(app: FastAPI) -> Service:
    made: Service = app.state.ab
    return made


@pytest.fixture
def metrics(app: FastAPI) -> Metrics:
    made: Metrics = app.state.metrics
    return made


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"mi_prun_ab_{name}", tuple(sorted(labels.items()))]


def test_a_request_is_counted_by_arm_reason_and_outcome(service: Service, observed: Observed, metrics: Metrics) -> None:
    assert value(metrics, "requests_total", arm="pruned", reason="split", outcome="timeout") == 0
    service.tell(observed("pruned", outcome="timeout"))
    service.tell(observed("pruned", ttft_s=0.03, itl_s=(0.004, 0.2), e2e_s=3.0, output_tokens=21, input_tokens=9))
    assert value(metrics, "requests_total", arm="pruned", reason="split", outcome="timeout") == 1
    assert value(metrics, "requests_total", arm="pruned", reason="split", outcome="ok") == 1
    assert value(metrics, "output_tokens_total", arm="pruned") == 41
    assert value(metrics, "input_tokens_total", arm="pruned") == 14
    assert value(metrics, "time_to_first_token_seconds_bucket", arm="pruned", le="0.04") == 1
    assert value(metrics, "request_duration_seconds_sum", arm="pruned") == pytest.approx(3.3)
    assert value(metrics, "inter_token_latency_seconds_bucket", arm="pruned", le="0.005") == 1
    assert value(metrics, "inter_token_latency_seconds_bucket", arm="pruned", le="+Inf") == 21
    assert value(metrics, "inter_token_latency_seconds_count", arm="dense") == 0
    assert value(metrics, "finish_reasons_total", arm="pruned", finish_reason="stop") == 2


def test_shadows_failovers_and_refusals(service: Service, compared: Compared, metrics: Metrics) -> None:
    service.tell(compared(0.7))
    service.tell(compared(None, error="timeout"))
    service.failovers["pruned"] += 2
    service.refusals[401] += 3
    assert value(metrics, "shadow_requests_total", arm="pruned", outcome="compared") == 1
    assert value(metrics, "shadow_requests_total", arm="pruned", outcome="error") == 1
    assert value(metrics, "shadow_token_agreement_ratio_sum", arm="pruned") == pytest.approx(0.7)
    assert value(metrics, "failovers_total", arm="pruned") == 2
    assert value(metrics, "failovers_total", arm="dense") == 0
    assert value(metrics, "requests_refused_total", status="401") == 3


def test_what_is_read_live(service: Service, observed: Observed, metrics: Metrics) -> None:
    assert value(metrics, "split_ratio", arm="pruned") == 0.25
    assert value(metrics, "guardrail_broken", arm="pruned", guardrail="error_rate<1%") == 0
    service.arms["pruned"].went_down()
    assert value(metrics, "arm_up", arm="pruned") == 0
    assert value(metrics, "arm_up", arm="dense") == 1
    for _ in range(60):
        service.tell(observed("pruned", outcome="upstream_error", status=500))
    assert value(metrics, "guardrail_broken", arm="pruned", guardrail="error_rate<1%") == 1
    assert value(metrics, "split_ratio", arm="pruned") == 0
    assert value(metrics, "experiment_version") == 2
    state = service.experiment.state
    assert (state.who, state.weights) == ("guardrail", {"dense": 3.0, "pruned": 0.0})
    assert "guardrail error_rate<1% is broken" in state.why


def test_no_client_makes_a_series(service: Service, observed: Observed, metrics: Metrics) -> None:
    """Whatever an engine or a client says."""
    service.tell(observed("pruned", finish_reason="first"))
    before = len(samples(metrics))
    for place in range(50):
        service.tell(
            observed("pruned", finish_reason=f"made_up_{place}", key_hash=f"{place:016x}", path=f"/v1/{place}")
        )
    assert len(samples(metrics)) == before


def test_names_and_units_are_conventional(service: Service, metrics: Metrics) -> None:
    text = metrics.text().decode()
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("mi_prun_ab_"):
            assert family.name.startswith("process_")
            continue
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|percent|kb|mb)(_|$)", family.name)
        for sample in family.samples:
            assert "le" in sample.labels or not sample.name.endswith("_bucket")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
    assert text.count("# TYPE mi_prun_ab_requests_total counter") == 1


def test_the_gap_histogram_is_the_librarys() -> None:
    gaps = (0.0, 0.001, 0.0011, 0.3, 0.5, 99.0)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = GapHistogram("gap_seconds", "Gaps.", ["a", "b"])
    ours.register(histogram)
    histogram.observe("a", gaps[:4])
    histogram.observe("a", gaps[4:])
    plain = Histogram("gap_seconds", "Gaps.", ["arm"], buckets=ITL_S, registry=theirs)
    plain.labels("b")
    for gap in gaps:
        plain.labels("a").observe(gap)

    def read(registry: CollectorRegistry) -> set[tuple[str, str, float]]:
        families = text_string_to_metric_families(generate_latest(registry).decode())
        return {
            (sample.name, str(sorted(sample.labels.items())), sample.value)
            for family in families
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    assert read(ours) == read(theirs)


def panels(node: Any) -> list[dict[str, Any]]:
    return [each for panel in node.get("panels", []) for each in [panel, *panels(panel)]]


def test_the_dashboard_names_only_what_there_is(
    service: Service, observed: Observed, compared: Compared, metrics: Metrics
) -> None:
    service.tell(observed("pruned"))
    service.tell(compared(0.5))
    service.refusals[401] += 1
    there = {name for name, _ in samples(metrics)}
    board = json.loads(GRAFANA.read_text())
    every = panels(board)
    queries = [target["expr"] for panel in every for target in panel.get("targets", [])]
    named = {name for query in queries for name in re.findall(r"\bmi_prun_ab_[a-z_]+", query)}
    assert len(queries) >= 12
    assert len(named) >= 12
    assert named <= there
    assert all(query.count("(") == query.count(")") for query in queries)
    assert len({panel["id"] for panel in every}) == len(every)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert {name for query in queries for name in re.findall(r"\$([a-z]+)\b", query)} <= variables
    labels = {label for _, pairs in samples(metrics) for label, _ in pairs}
    used = {
        name for query in queries for group in re.findall(r"by \(([a-z_, ]+)\)", query) for name in group.split(", ")
    }
    assert used <= labels
