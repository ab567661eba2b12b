"""The state: compare-and-set, a log of changes, one owner, and a restart."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mi_prun.errors import UserError
from serve.ab.config import ArmConfig, Config
from serve.ab.experiment import Experiment
from serve.ab.store import ConflictError, Store


def config(tmp_path: Path, **more: object) -> Config:
    arms = {"dense": ArmConfig(url="http://a"), "pruned": ArmConfig(url="http://b")}
    fields = {"arms": arms, "split": {"dense": 95, "pruned": 5}, "model_name": "m", "state": tmp_path / "s", **more}
    return Config.model_validate(fields)


def test_a_change_survives_a_restart_and_is_logged(tmp_path: Path) -> None:
    found = config(tmp_path)
    store = Store(found.state)
    experiment = Experiment(found, store)
    experiment.change(1, who="admin", why="more", weights={"pruned": 50}, shadow_share=0.25)
    store.close()
    store = Store(found.state)
    again = Experiment(found, store)
    assert again.state.weights == {"dense": 95.0, "pruned": 50.0}
    assert (again.state.version, again.state.shadow_share) == (2, 0.25)
    assert [(state.version, state.why) for state in store.changes("default")] == [(2, "more"), (1, "start")]
    store.close()


def test_a_change_for_another_version_changes_nothing(tmp_path: Path) -> None:
    found = config(tmp_path)
    store = Store(found.state)
    experiment = Experiment(found, store)
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
    found = config(tmp_path)
    store = Store(found.state)
    experiment = Experiment(found, store)
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
    found = config(tmp_path, split={"dense": 1, "pruned": 1})
    store = Store(found.state)
    experiment = Experiment(found, store)
    keys = [f"user-{number}" for number in range(50)]
    before = [experiment.assign(key, None).arm for key in keys]
    experiment.change(1, who="a", why="", paused=True)
    paused = [experiment.assign(key, None) for key in keys]
    assert {(assigned.arm, assigned.reason) for assigned in paused} == {("dense", "paused")}
    experiment.change(2, who="a", why="", paused=False)
    assert [experiment.assign(key, None).arm for key in keys] == before
    assert set(before) == {"dense", "pruned"}
    store.close()
