"""Windows shared over processes: what one process finds. Real gloo; real torchrun in the long tests, as each process
would import everything anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_prun.analysis.analysis import Analysis, read_analysis
from mi_prun.analysis.analyze import analyze
from mi_prun.analysis.ranks import Ranks, joined, local_device, world_size
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.settings import AnalyzeSettings


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "mi_prun", *words], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def same_figures(shared: Analysis, alone: Analysis) -> None:
    assert (shared.record.ranks, alone.record.ranks) == (2, 1)
    for name in ("segment_cost_nats", "segment_mi_nats", "block_cosine", "pair_angle"):
        assert np.allclose(getattr(shared, name), getattr(alone, name), rtol=0, atol=1e-5), name
    for name in ("scoring", "ranking", "held_out"):
        assert np.array_equal(getattr(shared, name), getattr(alone, name))


def test_two_processes_find_what_one_finds(
    tmp_path: Path,
    reference: Path,
    analyze_settings: AnalyzeSettings,
    two_ranks: Callable[[Callable[[int], None]], None],
) -> None:
    dense, settings = open_model(reference), replace(analyze_settings, ranking_tokens=None)
    analyze(dense, tmp_path / "alone", settings)

    def rank(number: int) -> None:
        record = analyze(dense, tmp_path / "shared", settings)
        assert (record is None) == (number > 0)  # rank 0 alone writes

    two_ranks(rank)
    same_figures(read_analysis(tmp_path / "shared"), read_analysis(tmp_path / "alone"))


@pytest.mark.long
@pytest.mark.parametrize("streamed", [False, True])
def test_torchrun_finds_what_one_process_finds(
    tmp_path: Path, reference: Path, harbour: Path, analyze_settings: AnalyzeSettings, streamed: bool
) -> None:
    options = ["--calibration", str(harbour), "--tokens", "256", "--window", "64", "--device", "cpu"]
    done = torchrun(
        "analyze", str(reference), *options, "-o", str(tmp_path / "a"), *(["--stream-blocks"] if streamed else [])
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.count("segment costs:") == 1  # rank 0 alone speaks
    analyze(open_model(reference), tmp_path / "alone", replace(analyze_settings, ranking_tokens=None))
    same_figures(read_analysis(tmp_path / "a"), read_analysis(tmp_path / "alone"))


@pytest.mark.long
def test_a_rank_without_windows_adds_nothing(
    tmp_path: Path, reference: Path, harbour: Path, analyze_settings: AnalyzeSettings
) -> None:
    options = ["--calibration", str(harbour), "--tokens", "64", "--window", "64", "--device", "cpu"]
    done = torchrun("analyze", str(reference), *options, "-o", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr[-2_000:]
    assert len(read_analysis(tmp_path / "a").scoring) == 1
    settings = replace(analyze_settings, scoring_tokens=64, ranking_tokens=None)
    analyze(open_model(reference), tmp_path / "b", settings)
    shared, alone = read_analysis(tmp_path / "a"), read_analysis(tmp_path / "b")
    assert np.allclose(shared.segment_cost_nats, alone.segment_cost_nats, rtol=0, atol=1e-5)
    assert np.allclose(shared.block_cosine, alone.block_cosine, rtol=0, atol=1e-6)


@pytest.mark.long
def test_a_fault_ends_all_ranks_and_leaves_nothing(tmp_path: Path, reference: Path, harbour: Path) -> None:
    done = torchrun(
        "analyze", str(reference), "--calibration", str(harbour), "--window", "9999999", "-o", str(tmp_path / "a")
    )
    assert done.returncode != 0
    assert "windows of 9999999 are needed" in done.stderr
    assert done.stderr.count("error: ") == 2  # each rank says it; none waits for one that ended
    assert "Gloo" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_other_commands_run_alone(tmp_path: Path, reference: Path) -> None:
    done = torchrun("prune", str(reference), "--ratio", "0.25", "-o", str(tmp_path / "p"))
    assert done.returncode != 0
    assert "mi-prun prune runs as one process; only analyze and heal share their work" in done.stderr
    assert not (tmp_path / "p").exists()


def test_shares_in_the_order_of_ranks_are_the_whole() -> None:
    windows = torch.arange(14).view(7, 2)
    assert torch.equal(torch.cat([Ranks(rank, 3).share(windows) for rank in range(3)]), windows)
    assert len(Ranks(2, 3).share(windows[:2])) == 0  # more ranks than windows


def test_a_process_on_its_own_needs_nobody() -> None:
    assert Ranks().from_first(lambda: "text") == "text"
    assert Ranks().to_first(lambda: "text") == ["text"]


def test_ranks_without_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="start them with torchrun"), joined():
        pass


def test_one_process_of_several_that_accelerate_was_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert world_size() == 1  # one was asked for
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match=r"several processes and started one.*add --multi_gpu"), joined():
        pass


def test_a_world_size_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="WORLD_SIZE must be a whole number of at least 1, got 'many'"):
        world_size()


@pytest.mark.parametrize(
    ("named", "rank", "found"),
    [(None, "1", "cuda:1"), ("cuda", "3", "cuda:1"), ("cuda:0", "1", "cuda:0"), ("cpu", "1", "cpu")],
)
def test_each_process_takes_a_gpu_of_its_own_unless_one_is_named_by_number(
    monkeypatch: pytest.MonkeyPatch, named: str | None, rank: str, found: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device(named) == found
