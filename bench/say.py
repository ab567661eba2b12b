"""Progress of a bench command: to stderr; stdout is for the figures."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
