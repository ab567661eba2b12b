from __future__ import annotations

import json
import sys
from pydoc_data.topics import topics

import pytest

from bench.studies import heal_study
from bench.studies.heal_study import figures, settings_of
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


@pytest.mark.long
def test_a_study_goes_on_with_what_it_lacks(reference, tmp_path, monkeypatch, capsys):
    prose = list(topics.values())
    texts = [tmp_path / name for name in ("one.txt", "two.txt", "judge.txt")]
    for number, text in enumerate(texts):
        text.write_text("\n\n\n".join(prose[number::3]))
    out = tmp_path / "heal.jsonl"
    words = ["heal_study", str(reference), "--drop", "4-5", "--window", "32", "--judge-tokens", "512", "-o", str(out)]
    words += ["--text", str(texts[0]), "--text", str(texts[1]), "--judge", str(texts[2]), "--device", "cpu"]

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
