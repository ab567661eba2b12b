"""A folder of kilobytes that lives as long as the server: removed at its end, and by a helper if it is killed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "mi-prun-serve-"
# Its input ends when the last process that holds the other end does, however that ended.
REMOVER = ("/bin/sh", "-c", 'trap "" TERM INT HUP; read -r _; rm -rf -- "$0"')


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder that only this user can read. After a kill -9 of this process it is removed all the same."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    remover = subprocess.Popen(
        [*REMOVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if remover.stdin is not None:
            remover.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            remover.wait(5)  # a child that outlives us may hold its input; it then ends with that child
