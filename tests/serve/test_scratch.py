"""The server's temporary folder goes with it, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.scratch import scratch_folder

PROGRAM = (
    "import time\nfrom serve.scratch import scratch_folder\n"
    "with scratch_folder() as folder:\n    (folder / 'a').mkdir()\n    print(folder, flush=True)\n    time.sleep(60)"
)


def test_it_is_removed_at_the_end_and_on_an_error() -> None:
    with scratch_folder() as folder:
        (folder / "inner").mkdir()
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    with pytest.raises(ZeroDivisionError), scratch_folder() as folder:
        _ = 1 / 0
    assert not folder.exists()


def test_it_is_removed_when_the_process_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
