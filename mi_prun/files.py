"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError

ABANDONED_SECONDS = 10.0  # between a folder's making and its lock
SPARE_BYTES = 16 << 20  # for headers, index, tokenizer and card, beyond the tensors


def check_output(path: Path, *, force: bool = False, folder: bool = True, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output path that would overwrite something, before any work is done.

    A folder that exists and is empty is fine. force: let whatever is there be replaced whole, except a folder that
    holds a `.git` or one of the inputs. folder: True if a folder is written, False for a file. inputs: what is read.
    """
    check_name(path, "output")
    parent = path.absolute().parent
    if parent.exists() and not parent.is_dir():
        raise UserError(f"output {path}: {parent} is a file, not a folder; choose another place")
    if not parent.is_dir():
        raise UserError(f"output {path}: its parent folder {parent} does not exist; make it first")
    if not os.access(parent, os.W_OK):
        raise UserError(f"output {path}: the folder {parent} is not writable")
    if path.is_symlink():
        raise UserError(f"output {path} is a symbolic link; name the place itself")
    if not path.exists():
        return
    if path.is_dir():
        if not folder:
            raise UserError(f"output {path} is a folder; name a file in it, like {path / 'plan.json'}")
        if os.path.ismount(path) or Path.cwd().is_relative_to(path.resolve()):
            raise UserError(
                f"output {path} is a mount point or holds the working folder, so it cannot be replaced whole; name a "
                f"new folder, like {path / 'model'}"
            )
        if not any(path.iterdir()):
            return
        if not force:
            raise UserError(f"output {path} exists and is not empty; choose another, or --force to replace it whole")
        if (path / ".git").exists():
            raise UserError(f"output {path} is a repository; --force will not remove it")
    elif not force:
        raise UserError(f"output {path} exists; choose another, or --force to replace it")
    for source in inputs:
        if source.resolve().is_relative_to(path.resolve()):
            raise UserError(f"output {path} is or holds {source}, which is read; choose another place")


def check_name(path: Path, what: str) -> None:
    """Refuse a name that is no UTF-8: it could not be recorded. what: names it in the message."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {str(path)!r}: its name is not UTF-8; rename it") from error


def check_apart(source: Path, out: Path, kind: str = "dense", named: str = "output") -> None:
    """Refuse an output that is the folder `source` of a model, holds it or lies in it: it is never touched.

    kind: of the model. named: what the output is, in the message.
    """
    home, target = source.resolve(), out.absolute().resolve()
    if home == target or home.is_relative_to(target) or target.is_relative_to(home):
        raise UserError(f"{named} {out} is, holds or lies in the {kind} model's folder {source}; choose another place")


def check_space(out: Path, needed_bytes: int) -> None:
    """Refuse a disk that cannot hold a folder of so many bytes and its small files."""
    parent = out.absolute().parent
    free, needed = shutil.disk_usage(parent).free, needed_bytes + SPARE_BYTES
    if free < needed:
        raise UserError(
            f"output {out} needs {needed / 1e9:.2f} GB and {parent} has {free / 1e9:.2f} GB free; make room or choose "
            "another disk"
        )


def partial_sibling(path: Path) -> Path:
    """Return a new hidden name beside `path`, for what is being written."""
    return path.absolute().parent / f".{path.name}.partial-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that takes the place of `path` when the block ends without an error.

    Each file should be fsynced by its writer (see `sync`). On any error, Ctrl-C included, the sibling is removed and
    `path` is as it was. A kill -9 leaves a hidden `.NAME.partial-*` sibling, which nothing takes for whole and which
    the next run for the same path removes.
    """
    check_output(path, force=force)
    partial = partial_sibling(path)
    try:
        with one_line_os_errors(path):
            _remove_abandoned(path)
            partial.mkdir()
            with _locked(partial):
                yield partial
                sync(partial)
                _take_place(partial, path)
                sync(path.absolute().parent)
    finally:
        _remove(partial)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, which goes with the block. After a kill -9 the next run removes it."""
    folder = partial_sibling(path)
    try:
        with one_line_os_errors(path):
            folder.mkdir()
        with _locked(folder):
            yield folder
    finally:
        _remove(folder)


def remove_abandoned_files(path: Path) -> None:
    """Remove what a kill -9 left of `new_file` for the same path, once it is old enough to be nobody's."""
    for sibling in path.absolute().parent.glob(f".{path.name}.partial-*"):
        with contextlib.suppress(OSError):
            if not sibling.is_dir() and time.time() - sibling.lstat().st_mtime > ABANDONED_SECONDS:
                sibling.unlink()


def _take_place(partial: Path, path: Path) -> None:
    """Put `partial` in the place of `path`. What was at `path` before is then at `partial`."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        partial.rename(path)
        return
    if _exchange(partial, path):
        return
    old = partial_sibling(path)
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise
    old.rename(partial)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step: a kill at any moment leaves one of them whole. Return False if that cannot be."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <linux/fs.h>
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Mark a folder as being written. The mark goes with the process, however it ends."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _remove_abandoned(path: Path) -> None:
    """Remove what a killed run for the same path left: siblings that no living process holds."""
    for sibling in path.absolute().parent.iterdir():
        if not sibling.name.startswith(f".{path.name}.partial-") or sibling.is_symlink() or not sibling.is_dir():
            continue
        with contextlib.suppress(OSError):
            fd = os.open(sibling, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(fd).st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(sibling)
            finally:
                os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling that takes the place of `path`, fsynced, when the block ends without an error."""
    partial = partial_sibling(path)
    try:
        with one_line_os_errors(path):
            partial.touch()
            rights = partial.stat().st_mode
            yield partial
            partial.chmod(rights)  # the user's usual ones: safetensors' own let nobody else read it
            sync(partial)
            partial.replace(path)
            sync(path.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Append one whole line in one write. It is on the disk before this returns; a kill leaves all of it or nothing."""
    data = (line + "\n").encode()
    with one_line_os_errors(path):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if os.write(file, data) != len(data):
                raise UserError(f"{path}: the disk took only a part of the last line; make room and remove that line")
            os.fsync(file)
        finally:
            os.close(file)


@contextlib.contextmanager
def one_line_os_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk (full, read-only, quota) into a UserError. It names what could not be read, where that is
    no part of the output.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and not Path(error.filename).absolute().is_relative_to(
            path.absolute().parent
        ):
            raise UserError(f"{error.filename}: {error.strerror}; {path} was not written") from error
        raise UserError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json_object(path: Path, missing: str) -> dict[str, Any]:
    """Return the object in a JSON file. missing: the error if there is no such file."""
    if not path.is_file():
        raise UserError(missing)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(data, ensure_ascii=False).encode()  # "\ud800", half a character, cannot be written again
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object")
    return data


def sha256_of(path: Path, advance: Callable[[float], None] | None = None) -> str:
    """Return the sha256 of a file, as hex. advance: is told of the bytes as they are read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while part := file.read(2**22):
            digest.update(part)
            if advance is not None:
                advance(len(part))
    return digest.hexdigest()
