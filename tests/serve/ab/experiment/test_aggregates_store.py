"""The figures in the state file."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mi_prun.errors import UserError
from serve.ab.api.app import create_app
from serve.ab.config import Config
from serve.ab.experiment import aggregates_store
from serve.ab.experiment.aggregates_store import AggregatesStore
from serve.ab.experiment.store import Store
from serve.ab.proxy.security import Keys
from serve.ab.verdict.collector import EventCollector
from serve.ab.verdict.event import Event

WEIGHTS = {"dense": 50.0, "pruned": 50.0}
Observed = Callable[..., Event]

KILLED = """
import os, signal, sys
from pathlib import Path
from serve.ab.experiment.aggregates_store import AggregatesStore
from serve.ab.verdict.collector import EventCollector
from serve.ab.experiment.store import Store
collector = EventCollector("trial", "dense", {"dense": 50.0, "pruned": 50.0})
collector.aggregates.arms["dense"].outcomes["ok"] = 7
AggregatesStore(Store(Path(sys.argv[1])), collector).save(collector.state())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_saved_before_a_kill_is_there(tmp_path: Path) -> None:
    path = tmp_path / "ab.sqlite"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=dict(os.environ), timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    collector = EventCollector("trial", "dense", WEIGHTS)
    AggregatesStore(Store(path), collector).load()
    assert collector.aggregates.arms["dense"].requests == 7


def test_each_experiment_has_its_own(tmp_path: Path, observed: Observed) -> None:
    store = Store(tmp_path / "ab.sqlite")
    collector = EventCollector("trial", "dense", WEIGHTS)
    collector.observe(observed())
    AggregatesStore(store, collector).save(collector.state())
    other = EventCollector("other", "dense", WEIGHTS)
    AggregatesStore(store, other).load()
    assert other.aggregates.arms["dense"].requests == 0
    same = EventCollector("trial", "dense", WEIGHTS)
    AggregatesStore(store, same).load()
    assert same.state() == collector.state()


def test_it_is_saved_while_it_runs(tmp_path: Path, observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates_store, "SAVE_S", 0.01)
    store = Store(tmp_path / "ab.sqlite")
    collector = EventCollector("trial", "dense", WEIGHTS)
    collector.observe(observed())

    async def run() -> None:
        task = asyncio.create_task(AggregatesStore(store, collector).run())
        for _ in range(500):
            await asyncio.sleep(0.01)
            if store.connection.execute("SELECT count(*) FROM evidence").fetchone()[0]:
                break
        task.cancel()

    asyncio.run(run())
    again = EventCollector("trial", "dense", WEIGHTS)
    AggregatesStore(store, again).load()
    assert again.aggregates.arms["dense"].requests == 1


def test_a_disk_that_takes_nothing_is_said_once(
    tmp_path: Path, observed: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "ab.sqlite")
    collector = EventCollector("trial", "dense", WEIGHTS)
    kept = AggregatesStore(store, collector)
    store.connection.execute("PRAGMA max_page_count=5")  # a full disk, as SQLite sees it
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            collector.observe(observed())
            kept.save(collector.state())
    assert len(caplog.records) == 1
    assert "the figures cannot be saved" in caplog.text
    store.connection.execute("PRAGMA max_page_count=100000")
    kept.save(collector.state())
    again = EventCollector("trial", "dense", WEIGHTS)
    AggregatesStore(store, again).load()
    assert again.aggregates.arms["dense"].requests == 3


def test_a_file_that_cannot_be_written_or_read_is_one_line(tmp_path: Path, observed: Observed) -> None:
    path = tmp_path / "ab.sqlite"
    collector = EventCollector("trial", "dense", WEIGHTS)
    store = Store(path)
    store.connection.execute("PRAGMA query_only=ON")
    with pytest.raises(UserError, match=r"cannot use .* as the state file: attempt to write a readonly database"):
        AggregatesStore(store, collector)
    store.connection.execute("PRAGMA query_only=OFF")
    AggregatesStore(store, collector).save(collector.state())  # of many pages
    store.close()
    content = bytearray(path.read_bytes())
    content[3 * 4096 :] = b"\xff" * (len(content) - 3 * 4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot use .* as the state file") as refused:
        AggregatesStore(Store(path), collector).load()
    assert "\n" not in str(refused.value)


def test_an_arm_at_another_url_begins_anew(tmp_path: Path, observed: Observed) -> None:
    """A restart goes on; a restart with another arm under the name does not."""

    def requests(url: str) -> int:
        """So many were kept; one more is."""
        arms = {"dense": {"url": "http://127.0.0.1:1"}, "pruned": {"url": url}}
        fields = {"arms": arms, "split": {"dense": 1, "pruned": 1}, "model_name": "m", "state": tmp_path / "state"}
        app = create_app(Config.model_validate({**fields, "access_log": tmp_path / "log"}), keys=Keys())
        with TestClient(app):
            collector = app.state.ab.collector
            kept = int(collector.aggregates.arms["pruned"].requests)
            collector.observe(observed("pruned"))
        return kept

    assert [requests(f"http://127.0.0.1:{port}") for port in (1, 1, 2, 2, 1)] == [0, 1, 0, 1, 0]


def test_a_reset_whose_start_fails_leaves_nothing_to_go_on_with(tmp_path: Path, observed: Observed) -> None:
    """Engines start after the state is reset: what was judged before must not come back with the next start."""
    arms = {"dense": {"url": "http://127.0.0.1:1"}, "pruned": {"url": "http://127.0.0.1:2"}}
    fields = {"arms": arms, "split": {"dense": 1, "pruned": 1}, "model_name": "m", "state": tmp_path / "state"}
    config = Config.model_validate({**fields, "access_log": tmp_path / "log"})

    def kept(*, reset: bool, starts: bool) -> int:
        app = create_app(config, keys=Keys(), reset=reset)
        collector = app.state.ab.collector
        requests = int(collector.aggregates.arms["pruned"].requests)
        if starts:
            with TestClient(app):
                collector.observe(observed("pruned"))
        else:
            app.state.ab.experiment.store.close()
        return requests

    assert [kept(reset=False, starts=True), kept(reset=False, starts=True)] == [0, 1]
    assert kept(reset=True, starts=False) == 0
    assert kept(reset=False, starts=True) == 0
