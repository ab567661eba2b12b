"""The page on healing says of each healed model what its record says, and groups what was healed alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.records.schema import append_record
from bench.records.task_schema import TaskRecord
from bench.studies import heal_report
from bench.studies.heal_report import Case, page, read_cases, read_refused
from bench.studies.heal_study import figures
from mi_prun.errors import UserError
from mi_prun.files import append_line

REFUSED = {
    "key": 'all:1k [3] {"learning_rate": 0.1}', "case": "all:1k", "model": "Model", "dropped": [3],
    "refused": "it does not help", "commit": "abc",
}  # fmt: skip


def record(case: str, dropped: list[int], closed: float = 0.5, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """A line of a study in which the dense model has perplexity 1, and the pruned one e^2."""
    chosen = {"rank": 32, "batch_tokens": 512, "learning_rate": 0.001, "train_dtype": "float32"} | settings
    quality = [{"pruned_kl_nats": kl, "healed_kl_nats": kl / 2} for kl in (0.5, 1.5)]
    tokens = 0 if case == "fit" else 32_256
    healing = {"tokens": tokens, "seconds": 61.2, "seed": seed, "settings": chosen, "quality": quality}
    judged = figures({"a": 0.0}, {"a": 2.0}, {"a": 2 * (1 - closed)})
    about = {"model": "Model", "dropped": dropped, "case": case, "machine": {"cpu": "EPYC"}}
    return about | {"healing": healing, "judged": judged}


def lines_of(text: str, heading: str) -> list[str]:
    """The rows of the table under a heading."""
    part = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for line in part.splitlines() if line.startswith("|")][2:]


def test_a_row_says_what_the_record_says() -> None:
    text = page([Case("one", record("fit", [3])), Case("one", record("lora:32k", [3], rank=8, seed=2))], {})
    fit, lora = lines_of(text, "model without 3")
    assert fit == "| `fit` | 0 | 1.0; 7.4; **2.7** (50%) | 1.00 -> 0.50 |  | 61 | EPYC | one |"
    assert "| seed 2, rank 8, 512 a step, 0.001, float32 |" in lora
    assert "Over seeds" not in text
    assert "stay the best" not in text


def test_records_that_leave_out_what_was_not_used_are_read() -> None:
    fit, whole = record("fit", [3]), record("all:32k", [3])
    fit["healing"]["settings"] = {"fit": True}
    del whole["healing"]["settings"]["rank"]
    first, second = lines_of(page([Case("one", fit), Case("one", whole)], {}), "model without 3")
    assert first == "| `fit` | 0 | 1.0; 7.4; **2.7** (50%) | 1.00 -> 0.50 |  | 61 | EPYC | one |"
    assert "| 512 a step, 0.001, float32 |" in second


def test_seeds_are_taken_together_and_other_settings_are_not() -> None:
    closed = ((0.4, 0, 32), (0.5, 1, 32), (0.6, 2, 32), (0.9, 0, 64))
    cases = [Case("one", record("lora:32k", [3], share, seed, rank=rank)) for share, seed, rank in closed]
    assert lines_of(page(cases, {}), "Over seeds") == ["| model | 3 | `lora:32k` | 3 | 50.0% +- 10.0% |"]


def test_what_the_gate_refused_is_said(tmp_path: Path) -> None:
    append_line(tmp_path / "one.jsonl", json.dumps(REFUSED))
    append_line(tmp_path / "one.jsonl", json.dumps(record("fit", [3])))
    append_line(tmp_path / "one.jsonl", json.dumps(REFUSED | {"key": 'all:1k [3] {"learning_rate": null}'}))
    text = page(read_cases(tmp_path), {}, read_refused(tmp_path))
    assert lines_of(text, "Refused by the gate") == [
        "| model | 3 | `all:1k` | 0.1 | it does not help | one |",
        "| model | 3 | `all:1k` | the default of abc | it does not help | one |",
    ]
    assert len(lines_of(text, "model without 3")) == 1


def test_sets_of_one_size_that_were_healed_alike_stand_together() -> None:
    cases = [
        Case("one", record("lora:32k", [3, 4], 0.5)),
        Case("one", record("lora:32k", [2, 3], 0.75)),
        Case("one", record("fit", [2, 3])),
        Case("one", record("lora:32k", [5], 0.5)),
    ]
    rows = lines_of(page(cases, {}), "Does the best set stay the best?")
    assert rows == [
        "| model | 2, 3 | `lora:32k` | 32,256 | 7.4 -> **1.6** |",
        "| model | 3, 4 | `lora:32k` | 32,256 | 7.4 -> **2.7** |",
    ]


def test_groups_judged_on_other_texts_have_a_dash() -> None:
    other = record("fit", [3], seed=1)
    other["judged"] = {"other.txt": next(iter(other["judged"].values()))}
    cases = [record("fit", [3]), other, record("fit", [4]), record("fit", [4], seed=1)]
    text = page([Case("one", case) for case in cases], {})
    assert "## Over seeds" in text
    alike = [record("lora", [3], train_dtype="bfloat16"), record("lora", [4], train_dtype="float32")]
    assert "healed alike" not in page([Case("one", case) for case in alike], {})
    again = [record("fit", [3]), record("fit", [3]), record("fit", [3], seed=1)]
    (row,) = lines_of(page([Case("one", case) for case in again], {}), "Over seeds")
    assert "| 2 |" in row  # seeds, not lines


def test_tasks_are_beside_the_dense_model(task: Callable[..., TaskRecord]) -> None:
    right = [True, True, False, False]
    records = [
        *(task((), right, task=name) for name in ("piqa", "lambada_openai")),
        *(task((3,), [True, False, False, False], task=name) for name in ("piqa", "lambada_openai")),
    ]
    dense, pruned = lines_of(page([Case("one", record("fit", [3]))], {"tasks.jsonl": records}), "Tasks: `tasks.jsonl`")
    assert dense == "| nothing |  | 50.0% | 50.0% | 50.0% |  |"
    assert pruned.startswith("| 3 |  | 25.0% | 25.0% | 25.0%; -25.0 (")
    assert pruned.endswith(" | 2 |")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Callable[..., TaskRecord]) -> None:
    out = tmp_path / "page.md"

    def run() -> object:
        monkeypatch.setattr(sys, "argv", ["heal_report", str(tmp_path), "-o", str(out)])
        with pytest.raises(SystemExit) as end:
            heal_report.main()
        return end.value.code

    with pytest.raises(UserError, match="has no records"):
        read_cases(tmp_path)
    assert run() == 2
    assert not out.exists()
    append_line(tmp_path / "one.jsonl", json.dumps(record("fit", [3])))
    append_line(tmp_path / "one.jsonl", json.dumps(REFUSED))
    append_line(tmp_path / "cost.jsonl", json.dumps({"model": "Model", "ratio": 0.8}))
    append_record(tmp_path, task((), [True]), "tasks.jsonl")
    assert run() == 0
    assert [case.file for case in read_cases(tmp_path)] == ["one"]
    assert "## Tasks: `tasks.jsonl`" in out.read_text()
    assert "## Refused by the gate" in out.read_text()
