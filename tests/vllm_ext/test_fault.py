"""The line that an engine's process leaves for the server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from vllm.config import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from vllm_ext import loader
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


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load()`: the loader on a dense model, the target of a draft, that does not fit its config."""

    def fail(*words: Any) -> None:
        raise ValueError("shapes do not fit\nand more of it")

    monkeypatch.setattr(DefaultModelLoader, "load_weights", fail)
    config = SimpleNamespace(model="dense", hf_config=SimpleNamespace())
    return lambda: loader.MiPrunLoader(LoadConfig(load_format="mi_prun")).load_weights(nn.Module(), config)


def test_a_dense_model_that_does_not_fit_is_reported_too(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULT_FILE, str(tmp_path / "fault"))
    with pytest.raises(SystemExit):
        load()
    assert reported(tmp_path / "fault") == "model dense does not fit its config: shapes do not fit"


def test_where_no_server_asked_the_error_goes_on(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAULT_FILE, raising=False)
    with pytest.raises(ValueError, match="shapes do not fit"):
        load()
