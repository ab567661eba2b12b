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

from mi_prun.files import sha256_of

MOST_BYTES = 2**28


def kept_folder(made: Path) -> Path:
    """Copy a folder into the user's cache, unless it is there, and return its place.

    Where there is no cache to write to, it holds something else at that place, or the folder is large (a healed one of
    a large model), the folder itself is returned.
    """
    if sum(file.stat().st_size for file in made.rglob("*") if file.is_file()) > MOST_BYTES:
        return made
    digest = _digest(made)
    with contextlib.suppress(OSError, RuntimeError):  # the latter: a user without a home
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mi-prun" / "served"
        place = home / digest[:32]
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
            digest.update(f"{file.relative_to(folder)}\0{sha256_of(file)}\0".encode())
    return digest.hexdigest()
