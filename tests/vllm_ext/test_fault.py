"""The line that an engine's process leaves for the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_ext.fault import FAULT_FILE, report, reported


def test_the_first_one_counts_and_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULT_FILE, str(tmp_path / "fault"))
    assert reported(tmp_path / "fault") is None
    assert report("a tensor\n  is missing")
    assert report("said later by another process")
    assert reported(tmp_path / "fault") == "a tensor is missing"


def test_where_it_cannot_be_left_the_error_must_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAULT_FILE, raising=False)
    assert not report("nobody asked")
    monkeypatch.setenv(FAULT_FILE, str(tmp_path / "no" / "folder"))
    assert not report("the server's folder is gone")
