from __future__ import annotations

import json
import sys
from pydoc_data.topics import topics

import pytest

from bench.studies import heal_study
from bench.studies.heal_study import figures, healed_table, settings_of
from mi_prun.errors import UserError
from mi_prun.settings import HealSettings


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("fit", ("none", True, None, None)),
        ("lora:100k", ("lora", True, 100_000, None)),
        ("all-alone:10min", ("all", False, None, 10.0)),
    ],
)
def test_cases(case, wanted):
    settings = settings_of(case, HealSettings())
    assert (settings.train, settings.fit, settings.tokens, settings.minutes) == wanted


@pytest.mark.parametrize("case", ["lora", "fit:10k", "none:10k", "other"])
def test_what_is_no_case(case):
    with pytest.raises(UserError, match="--case must be"):
        settings_of(case, HealSettings())


def test_share_of_the_gap():
    found = figures({"a": 1.0}, {"a": 3.0}, {"a": 1.5})
    assert found["a"]["gap_closed"] == 0.75


def test_the_table_has_a_line_for_each_healed_case_and_a_dash_for_what_was_not_judged():
    healing = {"method": "fit + lora", "tokens": 52_224, "seconds": 578.3}
    judged = figures({"a": 0.0, "b": 0.0}, {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 0.25})
    records = [
        {"model": "m", "dropped": [3, 4], "healing": healing, "judged": judged},
        {"model": "m", "dropped": [3, 4], "healing": healing, "judged": {"a": judged["a"]}},
        {"model": "m", "dropped": [5], "refused": "healing does not help"},
    ]
    header, _, first, second = healed_table(records).splitlines()
    assert header == "| model | dropped | healed by | tokens trained on | seconds | a | b |"
    assert first == "| m | 3, 4 | fit + lora | 52,224 | 578 | 1.0; 7.4; **2.7** (50%) | 1.0; 2.7; **1.3** (75%) |"
    assert second.endswith("| 1.0; 7.4; **2.7** (50%) | - |")


@pytest.mark.long
def test_a_study_goes_on_with_what_it_lacks(reference, tmp_path, monkeypatch, capsys):
    prose = list(topics.values())
    texts = [tmp_path / name for name in ("one.txt", "two.txt", "judge.txt")]
    for number, text in enumerate(texts):
        text.write_text("\n\n\n".join(prose[number::3]))
    out = tmp_path / "heal.jsonl"
    words = ["heal_study", str(reference), "--drop", "4-5", "--window", "32", "--judge-tokens", "512", "-o", str(out)]
    words += ["--text", str(texts[0]), "--text", str(texts[1]), "--judge", str(texts[2]), "--device", "cpu"]
    words += ["--keep", str(tmp_path / "kept")]

    def run(*cases: str) -> int:
        monkeypatch.setattr(sys, "argv", [*words, *(word for case in cases for word in ("--case", case))])
        with pytest.raises(SystemExit) as end:
            heal_study.main()
        return int(end.value.code or 0)

    assert run("fit") == 0
    first = out.read_text()
    (record,) = map(json.loads, first.splitlines())
    assert (record["case"], record["dropped"], record["healing"]["method"]) == ("fit", [4, 5], "fit")
    assert record["judged"]["judge.txt"].keys() == {"dense", "pruned", "healed", "gap_closed"}
    assert run("fit", "lora:512") == 0
    assert out.read_text().startswith(first)
    assert [json.loads(line)["case"] for line in out.read_text().splitlines()] == ["fit", "lora:512"]
    assert [(tmp_path / "kept" / name / "config.json").is_file() for name in ("fit", "lora-512")] == [True, True]
