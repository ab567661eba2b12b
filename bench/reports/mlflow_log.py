"""Log the runs of a results folder as MLflow runs, one for each model under each load. Only here is mlflow imported.

What is there already, by the tag `mi_prun.key`, is left alone: a folder may be logged as often as one likes.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from bench.records.flat_rows import FlatRow, rows_of
from bench.records.results import Results
from bench.records.task_schema import TaskRecord
from bench.records.task_summary import TaskRow, model_key, task_rows
from mi_prun.errors import UserError

EXPERIMENT = "mi-prun"
KEY = "mi_prun.key"


def log_results(results: Results, uri: str) -> int:
    """Log to the tracking server or store at `uri`; returns how many MLflow runs were made."""
    if find_spec("mlflow") is None:
        raise UserError("--mlflow needs mlflow: pip install mlflow-skinny")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
        made = 0
        for run in results.runs:
            given = run.dense.provenance
            for row in rows_of(run):
                tags = {"run": row.run, "commit": given.commit or "unknown", "machine": given.machine.cpu}
                made += _log(
                    client, experiment, f"{row.run}/{row.arm}/{row.load}", _parameters(row), _metrics(row), tags
                )
        for one in task_rows(results.tasks):
            made += _log_task(client, experiment, one)
    except (MlflowException, OSError) as error:
        raise UserError(f"--mlflow {uri}: {error}") from error
    return made


def _parameters(row: FlatRow) -> dict[str, str]:
    fields = row.model_dump(
        include={"dense_model", "arm", "kind", "method", "healing", "dropped", "block_ratio", "load"}
    )
    return {name: str(value) for name, value in fields.items()}


def _metrics(row: FlatRow) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.model_dump().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _log_task(client: Any, experiment: str, one: TaskRow) -> int:
    record: TaskRecord = one.record
    metrics = {f"{record.score.task}.{name}": value for name, value in record.score.scores.items()}
    if one.difference is not None:
        for name in ("mean", "low", "high"):
            metrics[f"{record.score.task}.difference_{name}"] = getattr(one.difference, name)
    parameters = {"dense_model": record.dense.name, "arm": record.arm.label, "dropped": str(record.arm.blocks.dropped)}
    key = f"{record.run}/{model_key(record)}/{record.score.task}"
    tags = {"run": record.run, "commit": record.provenance.commit or "unknown"}
    return _log(client, experiment, key, parameters, metrics, tags)


def _log(
    client: Any, experiment: str, key: str, parameters: dict[str, str], metrics: dict[str, float], tags: dict[str, str]
) -> int:
    """Log one MLflow run, and return 1; 0 where it is there."""
    quoted = key.replace("'", "_")
    if client.search_runs([experiment], f"tags.`{KEY}` = '{quoted}'", max_results=1):
        return 0
    from mlflow.entities import Metric, Param

    made = client.create_run(experiment, run_name=key, tags=tags).info.run_id
    now = int(time.time() * 1000)
    client.log_batch(
        made,
        metrics=[Metric(name.replace(",", ""), value, now, 0) for name, value in metrics.items()],  # commas are refused
        params=[Param(name, value) for name, value in parameters.items()],
    )
    client.set_tag(made, KEY, quoted)  # not before its figures are there: the next call leaves it alone
    client.set_terminated(made)
    return 1
