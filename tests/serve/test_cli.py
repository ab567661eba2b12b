"""`mi-prun-serve` refuses what it can before vLLM is imported: one line, exit status 2."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest


def serve(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--model is missing"),
        (("--model", "./nothing"), "no such folder"),
        (("--model", "owner/name", "--port", "0"), "--port must be in 1..65535, got 0"),
        (("--model", "owner/name", "--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
    ],
)
def test_one_line_and_status_2(words: tuple[str, ...], said: str) -> None:
    done = serve(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use(reference: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve("--model", reference, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "Address already in use; choose another --port" in done.stderr


def test_help_shows_an_example() -> None:
    done = serve("--help")
    assert done.returncode == 0
    assert "mi-prun-serve --model pruned/" in done.stdout
