"""Lines are written away from the event loop, and none goes missing on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from pathlib import Path

import pytest

from mi_prun.errors import UserError
from serve.ab.proxy import access_log
from serve.ab.proxy.access_log import MOST_WAITING, AccessLog


def test_lines_that_come_while_others_are_written_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "FLUSH_S", 0.0)
    log = AccessLog(tmp_path / "log")

    async def serve() -> None:
        writer = asyncio.create_task(log.run())
        for number in range(9_000):
            log.write(number=number, nothing=None)
            if number % 50 == 0:
                await asyncio.sleep(0)
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer

    asyncio.run(serve())
    log.close()
    assert log.lost == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == [{"number": number} for number in range(9_000)]


def test_lines_that_wait_are_bounded_by_their_length_too(tmp_path: Path) -> None:
    """A prompt may have megabytes, and the disk may stand still."""
    log = AccessLog(tmp_path / "log")
    for _ in range(70):
        log.write(prompt="x" * 2**20)
    assert log.lost == 7
    log.flush()
    log.write(prompt="x" * 2**20)
    assert log.lost == 7
    log.close()
    assert len((tmp_path / "log").read_text().splitlines()) == 64


def test_a_thread_that_is_cancelled_before_it_begins_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the proxy ends on a busy machine: the pool has not come to the thread yet."""
    monkeypatch.setattr(access_log, "FLUSH_S", 0.0)
    log = AccessLog(tmp_path / "log")

    async def cancelled(*words: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "to_thread", cancelled)
    log.write(number=1)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(log.run())
    log.close()
    assert (log.lost, (tmp_path / "log").read_text()) == (0, '{"number": 1}\n')


def test_what_cannot_be_written_or_kept_is_counted(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log")
    for number in range(MOST_WAITING + 3):
        log.write(number=number)
    assert log.lost == 3
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    os.close(full)
    log.close()
    assert log.lost == MOST_WAITING + 3


def test_the_file_is_not_closed_while_a_thread_writes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number would be another file's by then."""
    log = AccessLog(tmp_path / "log")
    writing, go_on, write = threading.Event(), threading.Event(), os.write

    def slow(file: int, data: bytes) -> int:
        writing.set()
        assert go_on.wait(10)
        return write(file, data)

    monkeypatch.setattr(os, "write", slow)
    log.write()
    flush = threading.Thread(target=log.flush)
    flush.start()
    assert writing.wait(10)
    close = threading.Thread(target=log.close)
    close.start()
    close.join(0.2)
    assert close.is_alive()
    go_on.set()
    flush.join(10)
    close.join(10)
    assert (tmp_path / "log").read_text() == "{}\n"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log._file)
    log.write()
    log.write()
    log.flush()
    assert log.lost == 2
    assert (tmp_path / "log").read_text() == "{}\n"


@pytest.mark.parametrize("removed", [False, True])
def test_a_file_that_was_rotated_is_opened_anew(tmp_path: Path, *, removed: bool) -> None:
    """As logrotate renames it, without a signal."""
    log = AccessLog(tmp_path / "log")
    log.write(number=1)
    log.flush()
    if removed:
        (tmp_path / "log").unlink()
    else:
        (tmp_path / "log").rename(tmp_path / "log.1")
        (tmp_path / "log").touch()
    log.write(number=2)
    log.close()
    assert (tmp_path / "log").read_text() == '{"number": 2}\n'
    assert removed or (tmp_path / "log.1").read_text() == '{"number": 1}\n'
    assert log.lost == 0


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes is whole lines, once it is read again."""
    monkeypatch.setattr(access_log, "STALL_S", 0.05)
    log = AccessLog(tmp_path / "log")
    reading, writing = os.pipe()
    os.dup2(writing, log._file)
    os.close(writing)
    log._opened = os.fstat(log._file)
    monkeypatch.setattr(log, "_follow", lambda: None)
    for number in range(9_000):
        log.write(number=number, text="x" * 20)
    flush = threading.Thread(target=log.flush, daemon=True)
    flush.start()
    flush.join(10)
    assert not flush.is_alive()
    assert 0 < log.lost < 9_000
    first = os.read(reading, 2**20)
    log.write(number=-1)
    log.close()
    lines = (first + os.read(reading, 2**20)).decode().splitlines()
    os.close(reading)
    assert json.loads(lines[-1]) == {"number": -1}
    assert [json.loads(line)["number"] for line in lines[:-2]] == list(range(len(lines) - 2))


def test_a_closed_standard_output_is_said_and_no_matter_where_a_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    AccessLog(tmp_path / "log").close()
    with pytest.raises(UserError, match="standard output is closed: name a file for the access log"):
        AccessLog(None)
