"""The console of a command: progress, errors in one line, exit status 2."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from mi_prun.errors import LONGEST_SHOWN, UserError, first_line

if TYPE_CHECKING:
    from typer import Typer

Advance = Callable[[float], None]
LINE_EVERY_S = 20.0
# What a user's files and disks do; any other error of the system is a fault of the program.
OF_THE_DISK = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE
)  # fmt: skip


def say(line: str) -> None:
    """Print a line of progress on stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(
    description: str, total: float, unit: str, *, shown: bool = True, counted: Callable[[], float] | None = None
) -> Iterator[Advance]:
    """Show how far work is, on stderr: a bar on a terminal, else a line every LINE_EVERY_S seconds.

    Yields a function to call with the number of units done since the last call. counted: returns the units done, where
    `total` is a number of something else.
    """
    if not shown:
        yield lambda amount: None
    elif sys.stderr.isatty():
        with _bar(description, total, unit, counted) as advance:
            yield advance
    else:
        with _lines(description, total, unit, counted) as advance:
            yield advance


@contextlib.contextmanager
def _bar(description: str, total: float, unit: str, counted: Callable[[], float] | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            if counted is None:
                return Text(_rate(task.finished_speed or task.speed or 0.0, unit))
            return Text(_rate(counted() / (task.elapsed or math.inf), unit))

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, Rate(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


@contextlib.contextmanager
def _lines(description: str, total: float, unit: str, counted: Callable[[], float] | None) -> Iterator[Advance]:
    """Print the lines from a thread of their own: a step that takes minutes does not keep them back."""
    begin, done, ended = time.monotonic(), 0.0, threading.Event()

    def advance(amount: float) -> None:
        nonlocal done
        done += amount

    def tell() -> None:
        while not ended.wait(LINE_EVERY_S):
            say(progress_line(description, done, total, unit, time.monotonic() - begin, counted and counted()))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        ended.set()
        teller.join()


def progress_line(
    description: str, done: float, total: float, unit: str, seconds: float, units: float | None = None
) -> str:
    """Return `quality: 40 %, 512 tokens/s, 0:24 left`; no rate and no time left before anything is done.

    units: done, where `done` and `total` are of something else.
    """
    line = f"{description}: {100 * min(1.0, done / total) if total else 100:.0f} %"
    if done <= 0 or seconds <= 0:
        return f"{line}, {_clock(seconds)} so far"
    rate = _rate((done if units is None else units) / seconds, unit)
    return f"{line}, {rate}, {_clock(max(0.0, total - done) * seconds / done)} left"


def _rate(speed: float, unit: str) -> str:
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2f} {unit}/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def kept(words: str | Callable[[], str]) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM inside end in `interrupted; WORDS`: what was kept of the work, and how it goes on.

    words: a function is asked at the interrupt, where they depend on how far the work was.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if not getattr(error, "__notes__", None):  # the innermost knows best
            error.add_note(words if isinstance(words, str) else words())
        raise


def run_command(command: Callable[[], object]) -> int:
    """Run a command and return its exit status: that of a UserError (one line), 130 for Ctrl-C, 143 for SIGTERM.

    A file that the user may not read, a bad disk and a name too long for a file are one line too. SIGTERM unwinds the
    stack as Ctrl-C does, so that half-written output is removed. Torch is asked for large pages: a fresh tensor is then
    not faulted in 4 KiB at a time, which took a training 7 % of its time.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it first allocates

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminate)
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(
            f"error: the accelerator's memory is full ({first_line(error)}); take a shorter --window, or --device cpu",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in OF_THE_DISK or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("; ".join(["interrupted", *getattr(interrupt, "__notes__", ())]), file=sys.stderr)
        return 130
    except SystemExit as end:
        if notes := getattr(end, "__notes__", ()):
            print("; ".join(["ended", *notes]), file=sys.stderr)
        raise
    return 0


def new_app(purpose: str) -> Typer:
    """Return a typer application with plain help, no completion and our own way with errors."""
    from typer import Typer

    return Typer(
        help=purpose,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )


KINDS_OF_VALUE = {"int": "a whole number", "float": "a number"}


def _with_value(said: str, error: Exception) -> str:
    """Return what typer says of a wrong value, with the value."""
    from pydantic import ValidationError

    if not isinstance(error.__cause__, ValidationError):
        return said
    first = error.__cause__.errors()[0]
    name = said.removeprefix("Invalid value for ").partition(": ")[0].strip("'")
    kind = KINDS_OF_VALUE.get(first["type"].partition("_")[0], first["msg"].removeprefix("Input should be "))
    return f"{name} must be {kind}, got {str(first['input'])[:LONGEST_SHOWN]!r}"


def run_app(app: Typer) -> int:
    """Run a typer application as `run_command` runs a command. A wrong option is one line too."""
    from typer.exceptions import TyperException
    from typer.main import get_command

    command, interrupts = get_command(app), list[KeyboardInterrupt]()
    invoke = command.invoke

    def invoke_noting(ctx: Any) -> Any:
        """Keep a Ctrl-C with its notes: typer makes a bare exit status of it."""
        try:
            return invoke(ctx)
        except KeyboardInterrupt as interrupt:
            interrupts.append(interrupt)
            raise

    command.invoke = invoke_noting  # type: ignore[method-assign]

    def call() -> None:
        try:
            status = command(standalone_mode=False)
        except TyperException as error:
            said = error.format_message()
            if not said.startswith("Usage: "):
                raise UserError(_with_value(said, error)) from error
            print(said, file=sys.stderr)  # no command was named: the help as it is
            raise SystemExit(2) from error
        if interrupts:
            raise interrupts[0]
        if isinstance(status, int) and status:  # typer gives an exit status back instead of raising it
            raise SystemExit(status)

    return run_command(call)
