"""MLflow, where it is asked for: into a store on this disk, once each; one line where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.results import Results, Run
from bench.records.schema import PointRecord
from bench.records.task_schema import TaskRecord
from bench.reports.mlflow_log import EXPERIMENT, log_results
from mi_prun.errors import UserError


@pytest.fixture
def results(one_sweep: list[PointRecord], task: Callable[..., TaskRecord]) -> Results:
    return Results((Run("run-1", tuple(one_sweep)),), (task(), task((3,), [False] * 4)), ())


def test_without_mlflow_it_is_said(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.reports.mlflow_log.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--mlflow needs mlflow: pip install mlflow-skinny"):
        log_results(results, "http://127.0.0.1:9")


def test_every_figure_is_logged_once(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    assert log_results(results, uri) == 6
    assert log_results(results, uri) == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = {run.info.run_name: run.data for run in client.search_runs([experiment.experiment_id])}
    point = runs["run-1/hybrid 25.0%/chat, 4 in flight"]
    assert point.metrics["x_output_tokens_per_s"] == 1.25
    assert point.metrics["perplexity"] == 70.0
    assert point.params["dropped"] == "(2, 3)"
    assert point.tags["commit"] == "0123456789ab"
    asked = next(data for data in runs.values() if "boolq.difference_mean" in data.metrics)
    assert asked.metrics["boolq.difference_mean"] == -0.75
    assert asked.metrics["boolq.acc"] == 0.0


def test_a_run_whose_figures_failed_is_logged_by_the_next_call(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()

    def broken(*_: object, **__: object) -> None:
        raise OSError("the line broke")

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_batch", broken)
        with pytest.raises(UserError, match="the line broke"):
            log_results(results, uri)
    assert log_results(results, uri) == 6


def test_a_server_that_is_not_there(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"--mlflow http://127\.0\.0\.1:9: "):
        log_results(results, "http://127.0.0.1:9")
