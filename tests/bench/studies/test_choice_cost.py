"""A choice's cost, on little text and the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.studies.choice_cost import BEFORE_ROWS, cache_for, main
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.text import self_text

pytestmark = pytest.mark.long


def test_each_step_is_a_line_with_both_ways(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "choice.jsonl"
    monkeypatch.setattr("sys.argv", ["choice_cost", str(reference), "--tokens", "64", "--window", "32", "-o", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["step"] for line in lines] == ["sample", "drop", "plan"]
    sample, drop, plan = lines
    assert sample["today"]["tokens"] == sample["before"]["tokens"] == 64 * 19
    assert (sample["today"]["rows_at_once"], sample["before"]["rows_at_once"]) == (38, BEFORE_ROWS)
    assert abs(sample["today"]["surprise_nats"] - sample["before"]["surprise_nats"]) < 1  # 38 windows of 32 tokens
    assert plan["today"]["passes"] == plan["before"]["passes"] > 1
    assert len(plan["today"]["dropped"]) == 2
    assert plan["before"]["estimated_seconds"] > 0
    for line in lines:
        for way in ("today", "before"):
            assert line[way]["seconds"] > 0
            shares = line[way]["profile"].values()
            assert 0 < sum(shares) <= 1.01
    assert drop["machine"]["cores"] >= 1


def test_so_many_rows_at_once(reference: Path) -> None:
    model = load_on(open_model(reference), "cpu").model
    before = self_text.CPU_CACHE_BYTES
    with cache_for(model, 5, 32):
        assert self_text.rows_at_once(model, 32) == 5
    assert before == self_text.CPU_CACHE_BYTES
