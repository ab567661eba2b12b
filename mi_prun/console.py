"""The console of a command: progress on a terminal only, errors in one line, exit status 2."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from mi_prun.errors import UserError, first_line

if TYPE_CHECKING:
    from typer import Typer

Advance = Callable[[float], None]


def say(line: str) -> None:
    """Print a line of progress on stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(description: str, total: float, unit: str, *, shown: bool = True) -> Iterator[Advance]:
    """Show a progress bar on stderr with a rate in `unit`/s. It is silent if stderr is no terminal, or not `shown`.

    Yields a function to call with the number of units done since the last call.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed or 0.0
            return Text(f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2f} {unit}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, Rate(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


def run_command(command: Callable[[], object]) -> int:
    """Run a command and return its exit status: 2 for UserError (one line), 130 for Ctrl-C, 143 for SIGTERM.

    SIGTERM unwinds the stack as Ctrl-C does, so that half-written output is removed.
    """

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminate)
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(
            f"error: the accelerator's memory is full ({first_line(error)}); take a shorter --window, or --device cpu",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
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


def run_app(app: Typer) -> int:
    """Run a typer application as `run_command` runs a command. A wrong option is one line too."""
    from typer import Abort
    from typer.exceptions import TyperException

    def call() -> None:
        try:
            status = app(standalone_mode=False)
            if isinstance(status, int) and status:  # typer gives an exit status back instead of raising it
                raise SystemExit(status)
        except Abort as error:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt from error
        except TyperException as error:
            raise UserError(error.format_message()) from error

    return run_command(call)
