"""A virtual folder at a place that its content names, the same at each start.

vLLM keeps what it compiled by the path of its model. Under another path it compiles all of it again, and keeps both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path


def kept_folder(made: Path) -> Path:
    """Copy a folder of kilobytes into the user's cache, unless it is there, and return its place.

    Where there is no cache to write to, or it holds something else at that place, the folder itself is returned.
    """
    digest = _digest(made)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mi-prun" / "served"
    place = home / digest[:32]
    with contextlib.suppress(OSError):
        if not place.is_dir():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=home) as scratch:
                copy = Path(shutil.copytree(made, Path(scratch) / "model"))
                with contextlib.suppress(OSError):  # another server was faster
                    copy.rename(place)
        if _digest(place) == digest:
            return place
    return made


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as data:
                while part := data.read(1 << 20):
                    digest.update(part)
    return digest.hexdigest()
