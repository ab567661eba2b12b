"""The state file, which outlives a restart: the experiment as it is, and every change that was made to it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mi_prun.artefact import Record
from mi_prun.errors import UserError

TABLES = """
CREATE TABLE IF NOT EXISTS experiment (name TEXT PRIMARY KEY, version INTEGER NOT NULL, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS change (
    id INTEGER PRIMARY KEY, experiment TEXT NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL
);
"""


class State(Record):
    """The state of an experiment.

    version: one more with each change. weights: of every arm, of any sum. paused: all requests go to the control,
    nothing is mirrored or counted. time: of the change, seconds since 1970. who, why: as was said.
    """

    version: int
    weights: dict[str, float]
    shadow_share: float = Field(ge=0.0, le=1.0)
    paused: bool
    time: float
    who: str
    why: str


class ConflictError(Exception):
    """The experiment has another version than the change was meant for."""


class Store:
    """One connection, which holds the file alone while it is open: two proxies of one state would each know half of it.

    `connection` may be used by others for tables of their own, under `lock`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        with self.one_line():
            self.connection = sqlite3.connect(path, timeout=0.5, check_same_thread=False, isolation_level=None)
            self.connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self.connection.execute("PRAGMA synchronous=FULL")
            self.connection.execute("BEGIN EXCLUSIVE")
            for statement in TABLES.split(";"):
                self.connection.execute(statement)
            self.connection.execute("COMMIT")

    def close(self) -> None:
        with self.lock:
            self.connection.close()

    def open_experiment(self, name: str, weights: dict[str, float], shadow_share: float, *, reset: bool) -> State:
        """Return the state as it was left, or as the config has it where it is new or `reset`.

        Raises UserError for other arms.
        """
        with self.lock, self.one_line():
            row = self.connection.execute("SELECT state FROM experiment WHERE name = ?", (name,)).fetchone()
            old = self._read(row[0]) if row else None
            if old is not None and not reset:
                if old.weights.keys() != weights.keys():
                    raise UserError(
                        f"{self.path}: experiment {name} has the arms {', '.join(old.weights)}, not "
                        f"{', '.join(weights)}; name another by --experiment, or --reset its state, which "
                        "forgets the figures of the verdict too"
                    )
                return old
            state = State(
                version=old.version + 1 if old else 1,
                weights=weights,
                shadow_share=shadow_share,
                paused=False,
                time=time.time(),
                who="config",
                why="reset" if old else "start",
            )
            self._transact(
                [
                    ("INSERT OR REPLACE INTO experiment VALUES (?, ?, ?)", (name, state.version, _text(state))),
                    _logged(name, state),
                ]
            )
            return state

    def replace(self, name: str, expected_version: int, *states: State) -> None:
        """Compare and set, by one change or more, the last of which is the state then: both tables in one transaction.

        Raises ConflictError, and then nothing was written.
        """
        state = states[-1]
        with self.lock:
            self._transact(
                [
                    (
                        "UPDATE experiment SET version = ?, state = ? WHERE name = ? AND version = ?",
                        (state.version, _text(state), name, expected_version),
                    ),
                    *(_logged(name, change) for change in states),
                ]
            )

    def changes(self, name: str, limit: int = 100) -> list[State]:
        """Return the last changes, newest first."""
        with self.lock:
            rows = self.connection.execute(
                "SELECT state FROM change WHERE experiment = ? ORDER BY id DESC LIMIT ?", (name, limit)
            ).fetchall()
        return [self._read(row[0]) for row in rows]

    @contextlib.contextmanager
    def one_line(self) -> Iterator[None]:
        """Turn what SQLite finds wrong with the file into a UserError."""
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise UserError(
                    f"state file {self.path} is in use by another mi-prun-ab; name another by --state"
                ) from error
            raise UserError(f"cannot use {self.path} as the state file: {error}") from error

    def _transact(self, statements: Iterable[tuple[str, tuple[Any, ...]]]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in statements:
                if self.connection.execute(statement, values).rowcount != 1:
                    raise ConflictError
            self.connection.execute("COMMIT")
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise

    def _read(self, text: str) -> State:
        try:
            return State.model_validate_json(text)
        except ValidationError as error:
            raise UserError(
                f"{self.path}: its state cannot be read by this release; name another by --state"
            ) from error


def _text(state: State) -> str:
    return json.dumps(state.model_dump())


def _logged(name: str, state: State) -> tuple[str, tuple[Any, ...]]:
    return (
        "INSERT INTO change (experiment, version, state) VALUES (?, ?, ?)",
        (name, state.version, _text(state)),
    )
