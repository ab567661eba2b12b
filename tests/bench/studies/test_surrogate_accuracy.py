"""Ranks of predictions, and the whole command on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.studies.surrogate_accuracy import figures, swaps


def test_swaps_are_all_sets_one_block_away() -> None:
    assert sorted(swaps((1, 4), 5)) == [(0, 1), (0, 4), (1, 2), (1, 3), (2, 4), (3, 4)]


@pytest.mark.parametrize(("sign", "correlation", "found", "gap"), [(1, 1.0, 10, 0.0), (-1, -1.0, 0, 2.76)])
def test_what_is_ranked_right_is_found(sign: int, correlation: float, found: int, gap: float) -> None:
    values = np.random.default_rng(0).permutation(300) / 100.0
    assert figures(sign * values, values) == {
        "rank_correlation": correlation,
        "found": found,
        "gap_nats": pytest.approx(gap),
    }


def test_the_command_ranks_what_it_did_not_learn_from(reference: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The pilot boat met the barque at the harbour mouth before the tide turned. " * 400)

    def run(k: int) -> subprocess.CompletedProcess[str]:
        words = ["--calibration", str(text), "-k", str(k), "--tokens", "128", "--window", "16", "--device", "cpu"]
        command = [sys.executable, "-m", "bench.studies.surrogate_accuracy", str(reference), *words]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(3)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["num_blocks"], record["k"]) == (12, 3)
    assert 24 <= record["sets"] <= 220 - 24
    beside = [f"candidates and neighbours of {n}" for n in (1, 2, 3)]
    assert list(record["surrogate"]) == ["quadratic", "candidates", *beside]
    assert str(tmp_path) not in done.stdout
    refused = run(1)
    assert refused.returncode != 0
    assert refused.stderr.splitlines()[-1].endswith("0 sets are left to rank, fewer than 24; take a k nearer to L/2")
