"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from mi_prun.errors import UserError


def check_output(path: Path, *, force: bool = False) -> None:
    """Refuse an output path that would overwrite something, before any work is done.

    A folder that exists and is empty is fine. With `force` whatever is there is replaced whole, except for a folder
    that holds a `.git`, the working folder or one of its parents.
    """
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"output {path}: its parent folder {parent} does not exist; make it first")
    if not os.access(parent, os.W_OK):
        raise UserError(f"output {path}: the folder {parent} is not writable")
    if path.is_symlink():
        raise UserError(f"output {path} is a symbolic link; name the place itself")
    if not path.exists():
        return
    if path.is_dir():
        if not any(path.iterdir()):
            return
        if not force:
            raise UserError(f"output {path} exists and is not empty; choose another, or --force to replace it whole")
        if (path / ".git").exists() or Path.cwd().is_relative_to(path.resolve()):
            raise UserError(f"output {path} is a repository or holds the working folder; --force will not remove it")
    elif not force:
        raise UserError(f"output {path} exists; choose another, or --force to replace it")


def partial_sibling(path: Path) -> Path:
    return path.absolute().parent / f".{path.name}.partial-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that takes the place of `path` when the block ends without an error.

    Each file should be fsynced by its writer (see `sync`). On any error, Ctrl-C included, the sibling is removed and
    `path` is as it was. After a kill -9 only a hidden `.NAME.partial-*` sibling is left, which nothing takes for whole.
    """
    check_output(path, force=force)
    partial = partial_sibling(path)
    try:
        with one_line_os_errors(path):
            partial.mkdir()
            yield partial
            sync(partial)
            _take_place(partial, path)
            sync(path.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, path: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = partial_sibling(path)
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a temporary sibling, fsync, rename."""
    partial = partial_sibling(path)
    try:
        with one_line_os_errors(path):
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync(path.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def one_line_os_errors(path: Path) -> Iterator[None]:
    """A full disk, a read-only target, a quota: one line, not a traceback."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
