"""A process group ends whole: children, deaf ones, and those of a parent that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from mi_prun.errors import UserError
from mi_prun.process_group import ProcessGroup, alive, answers, free_port

CHILD = "import time; time.sleep(60)"
FAMILY = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print("child", child.pid, flush=True)
time.sleep(60)
"""
RUNAWAY = f"""
import os, subprocess, sys
if os.fork():
    os._exit(0)  # nobody knows the parent of what follows
os.setsid()
print("runaway", subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True).pid, flush=True)
"""
ESCAPE = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {RUNAWAY!r}]); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def wait_for(log: Path, word: str) -> str:
    for _ in range(200):
        text = log.read_text()
        if word in text:
            return text
        time.sleep(0.05)
    raise AssertionError(f"{word!r} never came: {log.read_text()}")


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    with ProcessGroup([sys.executable, "-c", FAMILY], tmp_path / "log") as group:
        child = psutil.Process(int(wait_for(tmp_path / "log", "child").split()[1]))
        assert {group.process.pid, child.pid} <= {process.pid for process in group.processes()}
    assert not alive(child)
    assert group.processes() == []
    assert group.peak_rss_bytes > 1_000_000


def test_elsewhere_than_on_linux_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"sleep cannot be started: .* needs Linux, not darwin"):
        ProcessGroup(["sleep", "60"], tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_what_left_the_group_is_ended_too(tmp_path: Path) -> None:
    with ProcessGroup([sys.executable, "-c", ESCAPE], tmp_path / "log") as group:
        runaway = psutil.Process(int(wait_for(tmp_path / "log", "runaway").split()[1]))
        assert runaway.ppid() != group.process.pid
    assert not alive(runaway)


def test_what_a_leader_leaves_behind_is_ended(tmp_path: Path) -> None:
    leaves = FAMILY.replace("time.sleep(60)\n", "sys.exit(3)\n")
    with ProcessGroup([sys.executable, "-c", leaves], tmp_path / "log") as group:
        child = psutil.Process(int(wait_for(tmp_path / "log", "child").split()[1]))
        group.process.wait()
        assert alive(child)
    assert not alive(child)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    group = ProcessGroup([sys.executable, "-c", DEAF], tmp_path / "log")
    wait_for(tmp_path / "log", "deaf")
    group.stop(grace_seconds=0.3)
    assert group.process.returncode == -signal.SIGKILL
    group.stop()


def test_a_killed_parent_takes_its_child_with_it(tmp_path: Path) -> None:
    parent_code = (
        "import sys, time; from pathlib import Path; from mi_prun.process_group import ProcessGroup\n"
        f"group = ProcessGroup([sys.executable, '-c', {CHILD!r}], Path({str(tmp_path / 'log')!r}))\n"
        "print(group.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    child.wait(timeout=5)


def test_a_command_that_ends_early_shows_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('starting'); sys.exit('error: no such model')"]
    with ProcessGroup(command, tmp_path / "log") as group, pytest.raises(UserError, match="error: no such model"):
        group.wait_ready(f"http://127.0.0.1:{free_port()}/health", timeout_seconds=20)


def test_time_runs_out(tmp_path: Path) -> None:
    group = ProcessGroup([sys.executable, "-c", CHILD], tmp_path / "log")
    with group, pytest.raises(UserError, match="did not answer within"):
        group.wait_ready(f"http://127.0.0.1:{free_port()}/health", timeout_seconds=0.5)


def test_readiness_is_an_answer_of_the_url(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with ProcessGroup(command, tmp_path / "log") as group:
        assert group.wait_ready(f"http://127.0.0.1:{port}/", timeout_seconds=20) > 0


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_a_server_of_this_machine_is_asked_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy cannot reach it; with `http_proxy` set no engine would ever be ready."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert answers(f"http://127.0.0.1:{server.server_port}/health")
        assert not answers(f"http://127.0.0.1:{server.server_port}/other")
        server.shutdown()
    assert not answers(f"http://127.0.0.1:{free_port()}/health", 1.0)


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's may have grown for months."""
    monkeypatch.setattr("mi_prun.process_group.LOG_BYTES", 100)
    program = "print('error: an old one'); print('x' * 500); print('the last line', flush=True)"
    with ProcessGroup([sys.executable, "-c", program], tmp_path / "log") as group:
        assert group.process.wait(20) == 0
        assert "an old one" not in group.last_lines()
        assert group.last_lines().endswith("x | the last line")
