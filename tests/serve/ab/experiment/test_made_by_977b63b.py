"""A state file that the release of 2026-11 wrote is read, figure for figure.

`make_store.txt` is the script that made it and `verdict.json`, with the code of commit 977b63b.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from serve.ab.experiment.aggregates_store import AggregatesStore
from serve.ab.experiment.store import Store
from serve.ab.verdict import sums
from serve.ab.verdict.collector import EventCollector

FOLDER = Path(__file__).with_name("made_by_977b63b")
EVEN = {"dense": 1.0, "pruned": 1.0}
GUARDRAILS = ("error_rate<1%", "agreement>0.6", "e2e_p95_ms<400", "ttft_ms<1.2x")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Path(shutil.copy(FOLDER / "ab.sqlite", tmp_path / "ab.sqlite")))


def collector() -> EventCollector:
    return EventCollector("trial", "dense", EVEN, guardrails=GUARDRAILS, identities={"dense": "d", "pruned": "p"})


def test_its_figures_are_those_the_older_code_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its keys fall into one bucket. Its intervals of rate differences were made in another way."""
    monkeypatch.setattr(sums, "MIN_BUCKETS", 0.0)
    older = json.loads((FOLDER / "verdict.json").read_text())
    read = collector()
    AggregatesStore(store, read).load()
    verdict = json.loads(read.verdict().model_dump_json())
    for one in (older, verdict):
        del one["time"], one["comparisons"][0]["error_rate"], one["comparisons"][0]["gave_up_rate"]
    assert verdict == older
    assert read.guardrail_check.breaks[0].drained


def test_it_is_saved_as_this_release_has_it_and_read_again(store: Store) -> None:
    first, second = collector(), collector()
    AggregatesStore(store, first).load()
    AggregatesStore(store, first).save(first.state())
    AggregatesStore(store, second).load()
    assert json.loads(first.state())["schema_version"] == 3
    assert second.state() == first.state()
    assert second.aggregates.arms["dense"].requests == 295


def test_its_experiment_goes_on(store: Store) -> None:
    state = store.open_experiment("trial", EVEN, 0.0, reset=False)
    assert (state.version, state.weights, state.shadow_share) == (1, EVEN, 0.25)


def test_the_state_of_a_release_to_come_is_left(caplog: pytest.LogCaptureFixture) -> None:
    newer = json.loads(collector().state()) | {"schema_version": 99}
    read = collector()
    read.restore(json.dumps(newer))
    assert "begun anew: the figures kept are of another release" in caplog.text
