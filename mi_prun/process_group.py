"""A command in a process group of its own: it is started, waited for, measured, and ended with all its children.

An engine is several processes: an API server, an engine core, workers. All of them are ended together. A parent that is
killed takes its child with it (Linux: the kernel's parent-death signal). The kernel sends that signal when the *thread*
that started the command ends, so start it from a thread that lives as long as the command shall.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from mi_prun.errors import UserError

PR_SET_PDEATHSIG = 1
MARK = "MI_PRUN_GROUP"  # in the environment of every process of a group, those that left the group included
GRACE_SECONDS = 15.0
LOG_LINES = 12
LOG_BYTES = 2**16
SAMPLE_SECONDS = 0.25


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ProcessGroup:
    """A command that runs inside `with ProcessGroup(command, log) as group:`. At the end no process of it is left.

    log: takes the command's output. stdin: as `subprocess` has it.
    Peak memory is sampled every `sample_seconds`. Looking at all processes takes time from what is measured, so a
    bench samples less often.
    Raises UserError if this is not Linux.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        if sys.platform != "linux":
            raise UserError(f"{command[0]} cannot be started: ending all its processes needs Linux, not {sys.platform}")
        self.command = list(command)
        self.log = log
        self.peak_rss_bytes = 0
        self.sample_seconds = SAMPLE_SECONDS
        self._mark = uuid.uuid4().hex
        self._known: dict[int, psutil.Process] = {}
        self._foreign: dict[int, float] = {}  # pid -> start time of processes that are not ours: looked at once
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        log.write_bytes(b"")
        with log.open("ab") as output:  # it may be cut while the command runs
            self.process = subprocess.Popen(
                self.command,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {}), MARK: self._mark},
                start_new_session=True,
                preexec_fn=_with_parent(os.getpid()),
            )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, url: str, *, timeout_seconds: float = 600.0) -> float:
        """Wait until `url` answers 200, and return the seconds it took.

        Raises UserError with the last lines of the log if the command ends first, or time runs out.
        """
        start = time.monotonic()
        while time.monotonic() - start < timeout_seconds:
            if self.process.poll() is not None:
                raise UserError(f"{self.command[0]} ended with status {self.process.returncode}: {self.last_lines()}")
            if answers(url):
                return time.monotonic() - start
            time.sleep(0.2)
        raise UserError(f"{url} did not answer within {timeout_seconds:.0f} s: {self.last_lines()}")

    def last_lines(self) -> str:
        """Return the end of the log, lines joined by ` | `. Lines that say what went wrong are preferred."""
        with self.log.open("rb") as log:  # an engine's may have grown for months
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            end = log.read().decode(errors="replace")
        lines = [line.strip() for line in end.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("error:") or "Error: " in line or "Error:" in line]
        return " | ".join((said or lines)[-LOG_LINES if not said else -2 :]) or "it printed nothing"

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of the group, those that descend from it and those that carry its mark."""
        with self._lock:
            self._look()
            return [process for process in self._known.values() if alive(process)]

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Send SIGTERM to the leader, then to what it left, then SIGKILL to what is deaf. Safe to call twice."""
        self.processes()
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
        """Remember each process of the group, and add up their memory. A later look misses one whose parent died."""
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if process.pid in self._known or self._foreign.get(process.pid) == process.create_time():
                    continue
                if os.getpgid(process.pid) == self.process.pid or process.environ().get(MARK) == self._mark:
                    self._known[process.pid] = process
                elif time.time() - process.create_time() > 5.0:  # a young one may not have come to its exec yet
                    self._foreign[process.pid] = process.create_time()
        for process in list(self._known.values()):
            with contextlib.suppress(psutil.Error):
                for child in process.children(recursive=True):
                    self._known.setdefault(child.pid, child)
        rss = 0
        for process in self._known.values():
            with contextlib.suppress(psutil.Error):
                rss += process.memory_info().rss
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss)

    def _watch(self) -> None:
        while not self._stopping.wait(self.sample_seconds):
            with self._lock:
                self._look()


def open_local(url: str, timeout_s: float) -> Any:
    """Open a URL of this machine past any `http_proxy`."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout_s)


def local_addresses_direct() -> dict[str, str]:
    """Return the variables for a process that asks servers of this machine, which no proxy can reach."""
    told = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = ",".join(dict.fromkeys([*(name for name in told.split(",") if name), "127.0.0.1", "localhost"]))
    return {"no_proxy": names, "NO_PROXY": names}


def answers(url: str, timeout_s: float = 5.0) -> bool:
    """Return True if a server of this machine answers there with status 200."""
    try:
        with open_local(url, timeout_s) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def alive(process: psutil.Process) -> bool:
    """Return True if a process still runs. A zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def die_with_parent(parent: int, signum: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies; at once if it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def _with_parent(parent: int) -> Callable[[], None]:
    return lambda: die_with_parent(parent)
