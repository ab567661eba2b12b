"""Progress where stderr is no terminal, and what an interrupt says."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mi_prun import console
from mi_prun.console import kept, new_app, progress, progress_line, run_app, run_command


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (512, 2048, 16.0, "quality: 25 %, 32 tokens/s, 0:48 left"),
        (3, 4, 60.0, "quality: 75 %, 0.05 tokens/s, 0:20 left"),
        (1, 200, 60.0, "quality: 0 %, 0.02 tokens/s, 3:19:00 left"),
        (0, 2048, 20.2, "quality: 0 %, 0:20 so far"),
        (5, 4, 1.0, "quality: 100 %, 5.00 tokens/s, 0:00 left"),
        (0, 0, 1.0, "quality: 100 %, 0:01 so far"),
    ],
)
def test_a_line_has_percent_rate_and_time_left(done: float, total: float, seconds: float, line: str) -> None:
    assert progress_line("quality", done, total, "tokens", seconds) == line


def test_a_step_that_takes_long_does_not_keep_the_lines_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    said = threading.Event()
    tell = console.say

    def say(line: str) -> None:
        tell(line)
        said.set()

    monkeypatch.setattr(console, "LINE_EVERY_S", 0.01)
    monkeypatch.setattr(console, "say", say)
    before = threading.active_count()
    with progress("work", 10, "steps"):
        assert said.wait(30)  # though nothing was advanced
    assert capsys.readouterr().err.startswith("work: 0 %, 0:00 so far")
    assert threading.active_count() == before


def test_a_share_of_the_time_has_a_rate_of_its_own() -> None:
    """A quarter of the time is over, and 512 tokens were done in 8 s."""
    assert progress_line("healing", 0.25, 1, "tokens", 8, 512) == "healing: 25 %, 64 tokens/s, 0:24 left"


def test_work_of_a_moment_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 10, "steps") as advance:
        advance(10)
    assert capsys.readouterr().err == ""


@pytest.fixture
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *a: None)


@pytest.mark.usefixtures("no_signals")
def test_an_interrupt_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        with kept("nothing was written"), kept("the rows are kept in out"):
            raise KeyboardInterrupt

    assert run_command(command) == 130
    assert capsys.readouterr().err == "interrupted; the rows are kept in out\n"


@pytest.mark.usefixtures("no_signals")
def test_sigterm_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        with kept("nothing was written"):
            raise SystemExit(143)

    with pytest.raises(SystemExit, match="143"):
        run_command(command)
    assert capsys.readouterr().err == "ended; nothing was written\n"


@pytest.mark.usefixtures("no_signals")
def test_nothing_is_said_of_what_has_an_error_or_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        with kept("nothing was written"):
            pass

    assert run_command(command) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("no_signals")
def test_a_name_too_long_for_a_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: Path("n" * 300).stat()) == 2
    assert capsys.readouterr().err == f"error: {'n' * 300}: File name too long\n"


@pytest.mark.usefixtures("no_signals")
def test_a_file_that_may_not_be_read_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(code: int) -> None:
        raise OSError(code, os.strerror(code), "closed/model")

    assert run_command(lambda: refused(errno.EACCES)) == 2
    assert capsys.readouterr().err == "error: closed/model: Permission denied\n"
    with pytest.raises(OSError, match="Bad file descriptor"):  # a fault of the program
        run_command(lambda: refused(errno.EBADF))


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are Linux's")
def test_torch_is_asked_for_large_pages() -> None:
    """A large tensor then costs less than a fault for every page of 4 KiB, where the system gives large ones."""
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not modes.is_file() or "[never]" in modes.read_text():
        pytest.skip("this system gives no large pages")
    code = (
        "import resource, torch\n"
        "from mi_prun.console import run_command\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def work():\n"
        "    before = faults()\n"
        "    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)\n"
        "    print(faults() - before)\n"
        "run_command(work)\n"
    )
    small_pages = (64 << 20) // 4096
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) < small_pages / 4


@pytest.mark.usefixtures("no_signals")
def test_an_interrupted_application_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["app", "work"])
    app = new_app("An application.")

    @app.command()
    @kept("the rows are kept in out")
    def work() -> None:
        raise KeyboardInterrupt

    @app.command()
    def other() -> None: ...

    assert run_app(app) == 130
    assert capsys.readouterr().err == "interrupted; the rows are kept in out\n"


@pytest.mark.usefixtures("no_signals")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ratio", "25%"), "--ratio must be a number, got '25%'"),
        (("--blocks", "3.5"), "--blocks must be a whole number, got '3.5'"),
        (("--seeds", "1", "--seeds", "two"), "--seeds must be a whole number, got 'two'"),
    ],
)
def test_a_wrong_value_of_an_option_is_one_line_with_the_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["app", *words])
    app = new_app("An application.")

    @app.command()
    def work(ratio: float = 0.2, blocks: int = 1, seeds: list[int] | None = None) -> None: ...

    assert run_app(app) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
