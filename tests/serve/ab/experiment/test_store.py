"""The state: compare-and-set, a log of changes, one owner, and a restart."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from mi_prun.errors import UserError
from serve.ab.config import ArmConfig, Config
from serve.ab.experiment.experiment import Experiment
from serve.ab.experiment.store import ConflictError, Store


def config(tmp_path: Path, **more: object) -> Config:
    arms = {"dense": ArmConfig(url="http://a"), "pruned": ArmConfig(url="http://b")}
    fields = {"arms": arms, "split": {"dense": 95, "pruned": 5}, "model_name": "m", "state": tmp_path / "s", **more}
    return Config.model_validate(fields)


def test_a_change_survives_a_restart_and_is_logged(tmp_path: Path) -> None:
    configured = config(tmp_path)
    store = Store(configured.state)
    experiment = Experiment(configured, store)
    experiment.change(1, who="admin", why="more", weights={"pruned": 50}, shadow_share=0.25)
    store.close()
    store = Store(configured.state)
    again = Experiment(configured, store)
    assert again.state.weights == {"dense": 95.0, "pruned": 50.0}
    assert (again.state.version, again.state.shadow_share) == (2, 0.25)
    assert [(state.version, state.why) for state in store.changes("default")] == [(2, "more"), (1, "start")]
    store.close()


def test_a_change_for_another_version_changes_nothing(tmp_path: Path) -> None:
    configured = config(tmp_path)
    store = Store(configured.state)
    experiment = Experiment(configured, store)
    told: list[int] = []
    experiment.subscribers.append(lambda state: told.append(state.version))
    experiment.change(1, who="a", why="", paused=True)
    with pytest.raises(ConflictError):
        experiment.change(1, who="b", why="", paused=False)
    assert (experiment.state.paused, told) == (True, [2])
    assert len(store.changes("default")) == 2
    with pytest.raises(ConflictError):  # the file itself compares too
        store.replace("default", 7, experiment.state)
    assert len(store.changes("default")) == 2
    store.close()


@pytest.mark.parametrize(
    "change",
    [{"weights": {"dense": 0, "pruned": 0}}, {"weights": {"c": 1}}, {"weights": {"dense": -1}}, {"shadow_share": 1.5}],
)
def test_what_cannot_be_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    configured = config(tmp_path)
    store = Store(configured.state)
    experiment = Experiment(configured, store)
    with pytest.raises(ValueError, match=r"must|no arm"):
        experiment.change(1, who="a", why="", **change)  # type: ignore[arg-type]
    assert experiment.state.version == 1
    store.close()


def test_one_owner(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with pytest.raises(UserError, match="in use by another mi-prun-ab"):
        Store(tmp_path / "s")
    store.close()


def test_other_arms_need_a_reset(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    Experiment(config(tmp_path), store)
    other = config(tmp_path, arms={"dense": ArmConfig(url="http://a")}, split={"dense": 1})
    with pytest.raises(UserError, match="has the arms dense, pruned, not dense"):
        Experiment(other, store)
    assert Experiment(other, store, reset=True).state.version == 2
    store.close()


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(UserError, match="cannot use"):
        Store(tmp_path / "text")
    (tmp_path / "other").write_bytes(b"")
    connection = sqlite3.connect(tmp_path / "other")
    connection.execute("CREATE TABLE experiment (x)")
    connection.commit()
    connection.close()
    store = Store(tmp_path / "other")
    with pytest.raises(UserError, match="cannot use"):
        store.open_experiment("default", {"a": 1.0}, 0.0, reset=False)
    store.close()


def test_paused_goes_to_the_control_and_comes_back(tmp_path: Path) -> None:
    configured = config(tmp_path, split={"dense": 1, "pruned": 1})
    store = Store(configured.state)
    experiment = Experiment(configured, store)
    keys = [f"user-{number}" for number in range(50)]
    before = [experiment.assign(key, None).arm for key in keys]
    experiment.change(1, who="a", why="", paused=True)
    paused = [experiment.assign(key, None) for key in keys]
    assert {(assigned.arm, assigned.reason) for assigned in paused} == {("dense", "paused")}
    experiment.change(2, who="a", why="", paused=False)
    assert [experiment.assign(key, None).arm for key in keys] == before
    assert set(before) == {"dense", "pruned"}
    store.close()


def test_a_drain_holds_on_a_full_disk_and_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    configured = config(tmp_path)
    store = Store(configured.state)
    experiment = Experiment(configured, store)
    told: list[int] = []
    experiment.subscribers.append(lambda state: told.append(state.version))
    store.connection.execute("PRAGMA query_only=ON")  # as a disk that takes nothing
    with caplog.at_level("ERROR"):
        assert experiment.drain("pruned", "too many errors")
        experiment._save()
    assert (experiment.state.weights["pruned"], experiment.assign("key", None).arm) == (0.0, "dense")
    assert told == [2]
    (line,) = caplog.records
    assert "version 2 holds, but cannot be written to" in line.getMessage()
    with pytest.raises(sqlite3.Error):  # an operator's change is made or refused
        experiment.change(2, who="admin", why="", paused=True)
    assert (experiment.state.version, experiment.state.paused) == (2, False)

    store.connection.execute("PRAGMA query_only=OFF")
    experiment.change(2, who="admin", why="on", paused=True)
    assert [(state.version, state.who) for state in store.changes("default")] == [
        (3, "admin"),
        (2, "guardrail"),
        (1, "config"),
    ]
    store.close()
    store = Store(configured.state)
    assert Experiment(configured, store).state.weights == {"dense": 95.0, "pruned": 0.0}
    store.close()


def test_what_could_not_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.ab.experiment.experiment.SAVE_S", 0.01)
    configured = config(tmp_path)
    store = Store(configured.state)
    experiment = Experiment(configured, store)
    store.connection.execute("PRAGMA query_only=ON")
    experiment.drain("pruned", "why")
    store.connection.execute("PRAGMA query_only=OFF")

    async def run() -> None:
        task = asyncio.create_task(experiment.run())
        for _ in range(500):
            await asyncio.sleep(0.01)
            if store.changes("default")[0].version == 2:
                break
        task.cancel()

    asyncio.run(run())
    assert store.changes("default")[0].why == "why"
    store.close()


def test_flags_that_lose_to_the_state_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "s")
    Experiment(config(tmp_path), store).change(1, who="admin", why="", weights={"pruned": 50})
    with caplog.at_level("WARNING"):
        Experiment(config(tmp_path, split={"dense": 95, "pruned": 50}), store)
        assert caplog.records == []
        Experiment(config(tmp_path, split={"dense": 95, "pruned": 10}), store)
        (line,) = caplog.records
        said = line.getMessage()
        assert "dense=95, pruned=50; shadow share 0 (version 2, by admin)" in said
        assert "not as it is configured: dense=95, pruned=10; shadow share 0; --reset takes that" in said
        Experiment(config(tmp_path, split={"dense": 95, "pruned": 10}), store, reset=True)
        assert len(caplog.records) == 1
    store.close()
