"""Passes on why an engine did not start, from whichever of its processes knows it to the one that the user sees.

vLLM's API process learns of a fault in a worker only that there was one. `mi-prun-serve` names a file in its
environment, which its children inherit; the first that finds a fault writes one line there, and ends without a stack
trace over that line.
"""

from __future__ import annotations

import os
from pathlib import Path

FAULT_FILE = "MI_PRUN_FAULT_FILE"


def report(message: str) -> bool:
    """Leave a line for the server; the first one counts. False where no server asked for it, or it cannot be left."""
    path = os.environ.get(FAULT_FILE)
    try:
        if path:
            with Path(path).open("x", encoding="utf-8") as file:
                file.write(" ".join(message.split()))
    except FileExistsError:
        pass
    except OSError:
        return False
    return bool(path)


def reported(path: Path) -> str | None:
    """Return the line that was reported, if any."""
    try:
        return path.read_text(encoding="utf-8") or None
    except OSError:
        return None
