from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mi_prun import files
from mi_prun.errors import UserError
from mi_prun.files import (
    check_output,
    new_file,
    new_folder,
    remove_abandoned_files,
    scratch_folder,
    sha256_of,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, error, force):
    if force:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/old").write_text("old")

    def write() -> None:
        with new_folder(tmp_path / "out", force=force) as folder:
            (folder / "a").write_text("a")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == (["out"] if force else [])
    assert not force or names(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("before", ["nothing", "empty folder", "full folder", "file"])
def test_force_replaces_whatever_is_there(tmp_path, before):
    out = tmp_path / "out"
    if before == "file":
        out.write_text("old")
    elif before != "nothing":
        out.mkdir()
    if before == "full folder":
        (out / "old").write_text("old")
    with new_folder(out, force=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["new"]


def test_an_empty_folder_needs_no_force(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "out") == ["new"]


def test_outputs_that_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "repository/.git").mkdir(parents=True)
    for name, force, message in [
        ("none/out", False, "its parent folder .* does not exist"),
        ("file/out", False, "is a file, not a folder; choose another place"),
        ("file", False, "exists; choose another, or --force"),
        ("full", False, "exists and is not empty"),
        ("link", True, "is a symbolic link"),
        ("repository", True, "is a repository; --force will not"),
    ]:
        with pytest.raises(UserError, match=message):
            check_output(tmp_path / name, force=force)
    monkeypatch.chdir(tmp_path / "full")
    for force in (False, True):
        with pytest.raises(UserError, match=r"holds the working folder, .*; name a new folder, like"):
            check_output(tmp_path / "full", force=force)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="holds the working folder"):  # rename(2) would refuse it after all the work
        check_output(Path())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "empty")
    with pytest.raises(UserError, match="is a mount point or"):
        check_output(tmp_path / "empty")


def test_what_is_read_is_never_replaced(tmp_path):
    (tmp_path / "runs").mkdir()
    text = tmp_path / "runs/text.txt"
    text.write_text("text")
    for out in (text, tmp_path / "runs"):
        with pytest.raises(UserError, match=r"is or holds .*text\.txt, which is read"):
            check_output(out, force=True, inputs=[text])
    check_output(tmp_path / "runs", force=True, inputs=[tmp_path / "other.txt"])


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"output '.*': its name is not UTF-8; rename it"):
        check_output(Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le")))


def test_what_cannot_be_read_is_not_blamed_on_the_output(tmp_path):
    with (
        pytest.raises(UserError, match=r"^/elsewhere/shard: Input/output error; .*out was not written$"),
        new_folder(tmp_path / "out"),
    ):
        raise OSError(errno.EIO, "Input/output error", "/elsewhere/shard")


def test_a_target_that_cannot_be_written_is_one_line():
    # /proc takes no new folder, not even from root.
    with (
        pytest.raises(UserError, match=r"cannot write /proc/out: .*; nothing was left behind"),
        new_folder(Path("/proc/out")),
    ):
        pass


def test_a_folder_where_a_file_is_wanted_is_refused_before_any_work(tmp_path):
    for force in (False, True):
        with pytest.raises(UserError, match=r"is a folder; name a file in it, like .*plan\.json"):
            check_output(tmp_path, force=force, folder=False)
    check_output(tmp_path / "plan.json", folder=False)


def test_text_is_replaced_whole(tmp_path):
    write_text(tmp_path / "x", "one")
    write_text(tmp_path / "x", "two\n")
    assert (tmp_path / "x").read_text() == "two\n"
    assert names(tmp_path) == ["x"]
    assert sha256_of(tmp_path / "x") == "27dd8ed44a83ff94d557f9fd0412ed5a8cbca69ea04922d88c01184a07300a5a"


@pytest.mark.parametrize("atomic", [True, False])
def test_replacing_works_with_and_without_an_atomic_exchange(tmp_path, monkeypatch, atomic):
    if not atomic:  # not every file system has it
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    else:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").write_text("")
        assert files._exchange(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "a").is_file()
        (tmp_path / "a").unlink()
        (tmp_path / "b").rmdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("old")
    with new_folder(tmp_path / "out", force=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    abandoned = tmp_path / ".out.partial-0123456789ab"
    (abandoned / "sub").mkdir(parents=True)
    os.utime(abandoned, (0, 0))
    with new_folder(tmp_path / "out") as living:
        os.utime(living, (0, 0))
        with new_folder(tmp_path / "out") as other:
            (other / "a").write_text("a")
        assert living.is_dir()
        assert not abandoned.exists()
        (tmp_path / "out/a").unlink()
        (living / "b").write_text("b")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["b"]


def test_a_scratch_folder_goes_with_its_block_and_a_killed_one_with_the_next_run(tmp_path):
    path = tmp_path / "out"
    with scratch_folder(path) as scratch:
        (scratch / "file").write_text("x")
        assert scratch.parent == tmp_path
        os.utime(scratch, (0, 0))
        with new_folder(path) as folder:  # a living one is left alone
            (folder / "config.json").write_text("{}")
        assert (scratch / "file").is_file()
    assert names(tmp_path) == ["out"]
    left = tmp_path / f".out.partial-{'0' * 12}"
    left.mkdir()
    os.utime(left, (0, 0))
    with new_folder(path, force=True):
        pass
    assert names(tmp_path) == ["out"]


def test_files_that_a_kill_left_are_removed_once_they_are_old(tmp_path):
    old, young, other = (tmp_path / name for name in (".state.partial-0", ".state.partial-1", ".other.partial-0"))
    for path in (old, young, other):
        path.write_text("x")
        os.utime(path, None if path == young else (0, 0))
    remove_abandoned_files(tmp_path / "state")
    assert names(tmp_path) == [".other.partial-0", ".state.partial-1"]


def test_a_file_has_the_rights_that_the_user_gives(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "plain").touch()
    with new_file(tmp_path / "made") as partial:
        save_file({"a": torch.zeros(1)}, partial)
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "plain").stat().st_mode
