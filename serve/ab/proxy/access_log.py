"""The access log: a JSON line for each request, with its arm, why and how it ended; a prompt only where asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import stat
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError

FLUSH_S = 0.2
STALL_S = 1.0  # a pipe that takes nothing for so long has no reader; its lines are lost
MOST_WAITING, MOST_CHARACTERS = 10_000, 2**26  # of lines that wait for the disk


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)


class AccessLog:
    """A file of JSON lines. path: None is standard output.

    Lines are gathered, and written together off the event loop. A slow or full disk costs lines, which are counted in
    `lost`, and never an answer.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lost = 0
        self._lines: deque[str] = deque()
        self._added = self._taken = 0  # characters; each is changed by one thread at a time
        self._lock = threading.Lock()  # a thread of `run` may still write when the log is closed
        self._closed = False
        self._cut = False  # the last line was written in part
        if path is None:
            if sys.stdout is None:  # as a daemon's, started with `>&-`
                raise UserError("standard output is closed: name a file for the access log, --access-log FILE")
            self._file = sys.stdout.fileno()
        else:
            try:
                self._file = _opened(path)
            except OSError as error:
                raise UserError(f"cannot write the access log {path}: {error.strerror}") from error
        self._opened = os.fstat(self._file)

    def write(self, **fields: Any) -> None:
        """Add a line, without the fields that are None."""
        if len(self._lines) >= MOST_WAITING:  # before a line is made that would be lost
            self.lost += 1
            return
        line = json.dumps({name: value for name, value in fields.items() if value is not None})
        if self._added - self._taken + len(line) > MOST_CHARACTERS:
            self.lost += 1
            return
        self._lines.append(line)
        self._added += len(line)

    def flush(self) -> None:
        """Write the lines so far to the file. What cannot be written is counted.

        They are taken here and not before: a thread that is cancelled before it begins leaves them to the next one.
        """
        with self._lock:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            self._taken += sum(map(len, lines))
            if not lines:
                return
            data = ("\n".join(lines) + "\n").encode()
            if self._closed:
                self.lost += len(lines)
                return
            self._follow()
            data = b"\n" * self._cut + data  # a part of a line would spoil the next one
            try:
                written = self._write(data)
            except OSError:
                self.lost += len(lines)
                return
            if written:
                self._cut = data[:written][-1:] != b"\n"
            self.lost += min(len(lines), data[written:].count(b"\n"))  # the end of the last line is none of them

    def _write(self, data: bytes) -> int:
        """Write to the file, and return how many bytes it took. A pipe that nobody reads never holds up the end."""
        if stat.S_ISREG(self._opened.st_mode):
            return os.write(self._file, data)
        poll, written = select.poll(), 0
        poll.register(self._file, select.POLLOUT)
        while written < len(data) and poll.poll(1000 * STALL_S):
            written += os.write(self._file, data[written : written + select.PIPE_BUF])
        return written

    def _follow(self) -> None:
        """Open the file anew where it was renamed or removed, as logrotate does."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):  # no file can be opened now: the lines go where they went
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self.path.stat(), self._opened):
                    return
            before, self._file = self._file, _opened(self.path)
            os.close(before)
            self._opened = os.fstat(self._file)
            self._cut = False

    async def run(self) -> None:
        """Write what was added, several times a second, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            if self._lines:
                await asyncio.to_thread(self.flush)

    def close(self) -> None:
        """Write the rest and close the file. A flush that comes later writes nothing; its lines are counted as lost."""
        self.flush()
        with self._lock:
            if self.path is not None and not self._closed:
                os.close(self._file)
            self._closed = True
