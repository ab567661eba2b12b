"""Every record that is published, made by earlier releases, is still read by what reads its kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.results import read_results
from bench.records.schema import ROUNDS_NAME, RoundRecord, read_lines
from bench.reports.report import write_report
from bench.studies.real_report import LAST_WORDS, PAIRS
from bench.studies.selection_study import Confirmed, Pair, blocks_of, read_rows, read_study
from bench.studies.set_losses import read_last_words, read_losses
from mi_prun.json_lines import parse_json, read_whole_lines
from mi_prun.plan.plan import Plan

PUBLISHED = Path(__file__).parents[2] / "bench" / "published"
SWEEPS = sorted(path.parent for path in PUBLISHED.rglob("points.jsonl"))


def read_points_file(path: Path) -> None:
    results = read_results(path.parent)
    assert results.runs
    assert all(run.dense.arm.kind == "dense" and run.under(run.main) for run in results.runs)


def read_rounds_file(path: Path) -> None:
    rounds = read_lines(path.parent, ROUNDS_NAME, RoundRecord)
    runs = {run.name for run in read_results(path.parent).runs}
    assert runs <= {record.run for record in rounds}


def read_study_file(path: Path) -> None:
    rows = read_study(path)
    assert {(row.model, row.text) for row in rows} == {tuple(path.name.split(".")[:2])}


def read_confirmed_file(path: Path) -> None:
    confirmed = Confirmed.model_validate_json(path.read_text())
    assert confirmed.perplexity[""] > 1
    assert all(blocks_of(key) for key in confirmed.perplexity if key)


def read_pair_file(path: Path) -> None:
    pair = Pair.model_validate_json(path.read_text())
    assert len(pair.dropped[0]) == len(pair.dropped[1])


def read_optimum_file(path: Path) -> None:
    optimum = json.loads(path.read_text())
    assert optimum["optimum"].keys() == optimum["sets_measured"].keys()
    assert all(len(dropped) == int(k) for k, dropped in optimum["optimum"].items())


def read_losses_file(path: Path) -> None:
    losses = read_losses(path)
    assert {loss.model for loss in losses} == {path.name.split(".")[0]}
    assert len({(loss.text, loss.text_sha256, loss.tokens) for loss in losses}) == 1
    assert len({loss.dropped for loss in losses}) == len(losses)


def read_last_words_file(path: Path) -> None:
    counts = read_last_words(path)
    assert {count.model for count in counts} == {path.name.split(".")[0]}
    assert len({(count.items_sha256, count.items) for count in counts}) == 1
    assert len({count.dropped for count in counts}) == len(counts)
    assert () in {count.dropped for count in counts}


def read_pairs_file(path: Path) -> None:
    pairs = read_rows(path, Pair)
    assert {pair.model for pair in pairs} == {path.name.split(".")[0]}
    assert all(len(first) == len(second) and first != second for first, second in (pair.dropped for pair in pairs))
    assert len({(pair.text, pair.dropped) for pair in pairs}) == len(pairs)


def read_real_study_file(path: Path) -> None:
    if path.name.count(".") == 2 and not path.name.endswith((LAST_WORDS, PAIRS)):  # <model>.<text>.jsonl
        read_study_file(path)


def read_plan_file(path: Path) -> None:
    plan = Plan.read(path)
    assert len(plan.dropped) + len(plan.kept) == plan.dense.num_blocks


def read_figures_file(path: Path) -> None:
    """No command reads these; people do. Each is an object that says where it comes from."""
    lines = read_whole_lines(path) if path.suffix == ".jsonl" else [path.read_bytes()]
    records = [parse_json(line, str(path)) for line in lines]
    assert records
    assert all({"machine", "provenance"} & record.keys() for record in records)


READERS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("sweep/*/points.jsonl", read_points_file),
    ("sweep/*/rounds.jsonl", read_rounds_file),
    ("sweep/*/plans/*.json", read_plan_file),
    ("sweep/step.json", read_figures_file),
    ("selection/*.confirmed.json", read_confirmed_file),
    ("selection/*.optimum.json", read_optimum_file),
    ("selection/*.pair.json", read_pair_file),
    ("selection/*.jsonl", read_study_file),
    ("selection/present/*.jsonl", read_study_file),
    ("real-models/*.losses.jsonl", read_losses_file),
    ("real-models/*.last-words.jsonl", read_last_words_file),
    ("real-models/*.pairs.jsonl", read_pairs_file),
    ("real-models/*.jsonl", read_real_study_file),
    ("real-models/before-runs/*.jsonl", read_study_file),
    ("ab/*.jsonl", read_figures_file),
    ("draft/drafts.jsonl", read_figures_file),
    ("draft/*/points.jsonl", read_points_file),
    ("draft/*/rounds.jsonl", read_rounds_file),
    ("loader/*.json", read_figures_file),
    ("offline/*.json*", read_figures_file),
    ("offline/plans/*.json", read_plan_file),
    ("recovery/*.jsonl", read_figures_file),
    ("surrogate/*.jsonl", read_figures_file),
)


@pytest.mark.parametrize(("pattern", "read"), READERS, ids=[pattern for pattern, _ in READERS])
def test_every_kind_is_read(pattern: str, read: Callable[[Path], None]) -> None:
    paths = sorted(PUBLISHED.glob(pattern))
    assert paths
    for path in paths:
        read(path)


def test_no_record_is_of_another_kind() -> None:
    known = {path for pattern, _ in READERS for path in PUBLISHED.glob(pattern)}
    assert {path for path in PUBLISHED.rglob("*.json*") if path.is_file()} - known == set()


@pytest.mark.parametrize("folder", SWEEPS, ids=[folder.name for folder in SWEEPS])
def test_a_report_of_what_is_published(folder: Path, tmp_path: Path) -> None:
    for path in write_report(folder, tmp_path):
        assert path.stat().st_size > 1000
