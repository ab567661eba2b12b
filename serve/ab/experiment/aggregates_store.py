"""The figures so far, kept in the state file: a restart goes on with them."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from serve.ab.experiment.store import Store
from serve.ab.verdict.collector import EventCollector

logger = logging.getLogger("mi_prun_ab")

# Older releases wrote this table too: its name stays.
TABLE = "CREATE TABLE IF NOT EXISTS evidence (experiment TEXT PRIMARY KEY, state TEXT NOT NULL)"
SAVE_S = 3.0


class AggregatesStore:
    """The collector's state on disk.

    A kill loses the requests of the last SAVE_S seconds, and those that waited for an earlier one: they are missing in
    both arms alike.
    """

    def __init__(self, store: Store, collector: EventCollector) -> None:
        self._store = store
        self._collector = collector
        self._saved = ""
        self._failed = False
        with store.lock, store.one_line():
            store.connection.execute(TABLE)

    def forget(self) -> None:
        """Delete the state at once: a start that fails after it must not leave what the next one would go on with."""
        with self._store.lock, self._store.one_line():
            self._store.connection.execute("DELETE FROM evidence WHERE experiment = ?", (self._collector.experiment,))

    def load(self) -> None:
        """Restore what was saved, if anything was. Raises UserError where the file cannot be read."""
        with self._store.lock, self._store.one_line():
            row = self._store.connection.execute(
                "SELECT state FROM evidence WHERE experiment = ?", (self._collector.experiment,)
            ).fetchone()
        if row:
            self._collector.restore(row[0])

    def save(self, text: str) -> None:
        """Write the state. A full disk costs the restart its figures, nothing else; it is said once."""
        if text == self._saved:
            return
        try:
            with self._store.lock:
                self._store.connection.execute(
                    "INSERT OR REPLACE INTO evidence VALUES (?, ?)", (self._collector.experiment, text)
                )
        except sqlite3.Error as error:
            if not self._failed:
                logger.error("the figures cannot be saved to %s: %s", self._store.path, error)
            self._failed = True
            return
        self._saved, self._failed = text, False

    async def run(self) -> None:
        """Save every SAVE_S. The state is taken in the event loop, in one piece; the disk is waited for outside."""
        while True:
            await asyncio.sleep(SAVE_S)
            await asyncio.to_thread(self.save, self._collector.state())
