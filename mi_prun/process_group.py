"""A command in a process group of its own: started, waited for, measured, and ended with all its children.

An engine is several processes: an API server, an engine core, workers. Whoever starts one here gets them all ended, and
a parent that is killed takes its child with it (Linux: the kernel's parent-death signal).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mi_prun.errors import UserError

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 15.0
LOG_LINES = 12


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ProcessGroup:
    """`with ProcessGroup(command, log) as group:` the command runs; at the end no process of it is left.

    Output of the command goes to `log`. Peak memory is sampled while it runs.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self.peak_rss_bytes = 0
        self._known: dict[int, psutil.Process] = {}
        self._stopping = threading.Event()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_ready(self, url: str, *, timeout_seconds: float = 600.0) -> float:
        """Wait until `url` answers 200; returns the seconds it took.

        Raises UserError with the last lines of the log where the command ends first, or time runs out.
        """
        start = time.monotonic()
        while time.monotonic() - start < timeout_seconds:
            if self.process.poll() is not None:
                raise UserError(f"{self.command[0]} ended with status {self.process.returncode}: {self.last_lines()}")
            if _answers(url):
                return time.monotonic() - start
            time.sleep(0.2)
        raise UserError(f"{url} did not answer within {timeout_seconds:.0f} s: {self.last_lines()}")

    def last_lines(self) -> str:
        """The end of the log, its lines joined by ` | `; lines that say what went wrong are preferred."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("error:") or "Error: " in line or "Error:" in line]
        return " | ".join((said or lines)[-LOG_LINES if not said else -2 :]) or "it printed nothing"

    def processes(self) -> list[psutil.Process]:
        """All living processes of the group, and those that descend from it."""
        self._look()
        return [process for process in self._known.values() if _alive(process)]

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """SIGTERM to the leader, then to what it left, then SIGKILL to what is deaf. Safe to call twice."""
        self._look()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_seconds)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        deadline = time.monotonic() + grace_seconds
        while self.processes() and self.process.poll() is not None and time.monotonic() < deadline:
            time.sleep(0.05)  # children that are ending by themselves
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.poll()  # reaps the leader; the others are reaped by whoever adopted them
            time.sleep(0.02)
        self.process.wait()
        self._stopping.set()
        self._watcher.join()

    def _look(self) -> None:
        """Remember each process of the group (one whose parent dies would be lost to a later look), and weigh them."""
        for process in list(_group(self.process.pid)):
            self._known.setdefault(process.pid, process)
            with contextlib.suppress(psutil.Error):
                for child in process.children(recursive=True):
                    self._known.setdefault(child.pid, child)
        rss = 0
        for process in list(self._known.values()):
            with contextlib.suppress(psutil.Error):
                rss += process.memory_info().rss
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss)

    def _watch(self) -> None:
        while not self._stopping.wait(0.25):
            self._look()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _group(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == leader:
                yield process


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
