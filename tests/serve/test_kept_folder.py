"""The place of a virtual folder: the same for the same content, and never something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.kept_folder import kept_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder(path: Path, text: str = "{}") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def test_the_same_content_has_one_place(cache: Path, tmp_path: Path) -> None:
    first = kept_folder(folder(tmp_path / "one" / "pruned"))
    second = kept_folder(folder(tmp_path / "two" / "pruned"))
    other = kept_folder(folder(tmp_path / "three" / "pruned", '{"a": 1}'))
    assert first == second != other
    assert first.is_relative_to(cache)
    assert (first / "config.json").read_text() == "{}"
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, other.name])


def test_what_was_changed_there_is_not_served(cache: Path, tmp_path: Path) -> None:
    made = folder(tmp_path / "pruned")
    (kept_folder(made) / "config.json").write_text("[]")
    assert kept_folder(made) == made


def test_without_a_cache_the_folder_itself_is_served(cache: Path, tmp_path: Path) -> None:
    cache.write_text("no folder")
    made = folder(tmp_path / "pruned")
    assert kept_folder(made) == made
