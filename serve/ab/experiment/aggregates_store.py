"""The figures so far, kept in the state file: a restart goes on with them."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from serve.ab.experiment.store import Store
from serve.ab.verdict.collector import Judge

logger = logging.getLogger("mi_prun_ab")

TABLE = "CREATE TABLE IF NOT EXISTS evidence (experiment TEXT PRIMARY KEY, state TEXT NOT NULL)"
SAVE_S = 3.0


class EvidenceStore:
    """A kill loses the requests of the last SAVE_S seconds: they are missing in both arms alike."""

    def __init__(self, store: Store, judge: Judge) -> None:
        self._store = store
        self._judge = judge
        self._saved = ""
        self._failed = False
        with store.lock, store.one_line():
            store.connection.execute(TABLE)

    def forget(self) -> None:
        """At once: a start that fails after it must not leave what the next one would go on with."""
        with self._store.lock, self._store.one_line():
            self._store.connection.execute("DELETE FROM evidence WHERE experiment = ?", (self._judge.experiment,))

    def load(self) -> None:
        """Raises UserError where the file cannot be read."""
        with self._store.lock, self._store.one_line():
            found = self._store.connection.execute(
                "SELECT state FROM evidence WHERE experiment = ?", (self._judge.experiment,)
            ).fetchone()
        if found:
            self._judge.restore(found[0])

    def save(self, text: str) -> None:
        """A full disk costs the restart its figures, nothing else; it is said once."""
        if text == self._saved:
            return
        try:
            with self._store.lock:
                self._store.connection.execute(
                    "INSERT OR REPLACE INTO evidence VALUES (?, ?)", (self._judge.experiment, text)
                )
        except sqlite3.Error as error:
            if not self._failed:
                logger.error("the figures cannot be saved to %s: %s", self._store.path, error)
            self._failed = True
            return
        self._saved, self._failed = text, False

    async def run(self) -> None:
        """The state is taken in the event loop, in one piece; the disk is waited for outside of it."""
        while True:
            await asyncio.sleep(SAVE_S)
            await asyncio.to_thread(self.save, self._judge.state())
