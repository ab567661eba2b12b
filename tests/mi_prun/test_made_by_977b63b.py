"""Files that the release before wrote are still read, with what they say.

Made by that tree, on the bundled model and a public licence text:

    mi-prun analyze bench/reference --calibration apache-2.0.txt --tokens 1024 --window 64 -o analysis
    mi-prun plan analysis --num-blocks 2 --method bi -o plan.json
    mi-prun apply bench/reference plan.json --virtual -o virtual              # mi_prun.json is of this folder
    mi-prun compare bench/reference --ratios .1 --methods bi,angular,mi-prun:0 --calibration apache-2.0.txt \
        --tokens 1024 --window 64 -o compared                                # rows.jsonl
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mi_prun.analysis.analysis import read_analysis
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.comparison.comparison import read_rows
from mi_prun.plan.plan import Plan, open_dense
from mi_prun.planning.planning import make_context, make_plan
from mi_prun.settings import PlanSettings

MADE = Path(__file__).with_name("made_by_977b63b")


def test_an_analysis_is_read_and_planned_from_as_before(reference: Path) -> None:
    analysis = read_analysis(MADE / "analysis")
    said = json.loads((MADE / "analysis" / "analysis.json").read_text())
    assert analysis.record.calibration.fingerprint == said["calibration"]["fingerprint"]
    assert analysis.num_blocks == 12
    assert analysis.segment_mi_nats.shape == (13, 13)
    settings = PlanSettings(method="bi", quality=False)
    made = make_plan(make_context(analysis, settings), 2, settings)
    assert made.dropped == Plan.read(MADE / "plan.json").dropped == (3, 10)


def test_a_plan_is_read_and_applied(reference: Path, tmp_path: Path) -> None:
    plan = Plan.read(MADE / "plan.json")
    said = json.loads((MADE / "plan.json").read_text())
    assert list(plan.dropped) == said["dropped"]
    assert plan.quality is not None
    assert plan.quality.model_dump(mode="json") == said["quality"]
    manifest = write_checkpoint(open_dense(reference, plan), plan, tmp_path / "out", virtual=True)
    before = Manifest.read(MADE / "mi_prun.json")
    assert manifest.plan == before.plan
    assert manifest.structure_sha256 == before.structure_sha256
    assert manifest.weight_bytes == before.weight_bytes
    assert manifest.files.keys() == before.files.keys()


def test_rows_of_a_comparison_are_read(tmp_path: Path) -> None:
    shutil.copy(MADE / "rows.jsonl", tmp_path)
    rows = read_rows(tmp_path)
    assert [row.model_dump(mode="json") for row in rows] == [
        json.loads(line) for line in (MADE / "rows.jsonl").read_text().splitlines()
    ]
    assert [row.label for row in rows] == ["bi:0", "angular:0", "mi-prun:0"]
    assert rows[0].perplexity / rows[0].dense_perplexity == pytest.approx(1, abs=0.1)
