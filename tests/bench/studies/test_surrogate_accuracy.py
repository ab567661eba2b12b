"""Ranks of predictions, and the whole command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.studies.surrogate_accuracy import figures, main, swaps


def test_swaps_are_all_sets_one_block_away() -> None:
    assert sorted(swaps((1, 4), 5)) == [(0, 1), (0, 4), (1, 2), (1, 3), (2, 4), (3, 4)]


@pytest.mark.parametrize(("sign", "correlation", "among_the_best", "gap"), [(1, 1.0, 10, 0.0), (-1, -1.0, 0, 2.76)])
def test_what_is_ranked_right_is_found(sign: int, correlation: float, among_the_best: int, gap: float) -> None:
    values = np.random.default_rng(0).permutation(300) / 100.0
    assert figures(sign * values, values) == {
        "rank_correlation": correlation,
        "found": among_the_best,
        "gap_nats": pytest.approx(gap),
    }


@pytest.mark.long
def test_the_command_ranks_what_it_did_not_learn_from(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The pilot boat met the barque at the harbour mouth before the tide turned. " * 400)

    def run(k: int) -> tuple[object, str, str]:
        words = ["--calibration", str(text), "-k", str(k), "--tokens", "128", "--window", "16", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["surrogate_accuracy", str(reference), *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return stopped.value.code, said.out, said.err

    status, out, err = run(3)
    assert status == 0, err
    record = json.loads(out.splitlines()[-1])
    assert (record["num_blocks"], record["k"]) == (12, 3)
    assert 24 <= record["sets"] <= 220 - 24
    beside = [f"candidates and neighbours of {n}" for n in (1, 2, 3)]
    assert list(record["surrogate"]) == ["quadratic", "candidates", *beside]
    assert str(tmp_path) not in out
    status, _, err = run(1)
    assert status != 0
    assert err.splitlines()[-1].endswith("0 sets are left to rank, fewer than 24; take a k nearer to L/2")


@pytest.mark.parametrize("k", [0, 12])
def test_a_number_of_blocks_that_cannot_be_dropped_is_refused_before_the_text_is_read(
    k: int, reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["surrogate_accuracy", str(reference), "--calibration", "none.txt", "-k", str(k)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"error: -k must be in 1..11 for a model of 12 blocks, got {k}"]
