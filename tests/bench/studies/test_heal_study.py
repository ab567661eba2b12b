from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from bench.studies import heal_study
from bench.studies.heal_study import JudgedModel, cell, figures, healed_table, read_records, settings_of
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.judge import NoBetterError
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


def test_texts_of_one_name_are_refused(reference):
    with pytest.raises(UserError, match=r"two texts to judge by are called wiki.txt"):
        JudgedModel(open_model(reference), ["a/wiki.txt", "b/wiki.txt"], 64, 32)


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
    assert run("fit", "lora:1k") == 0
    assert out.read_text().startswith(first)
    assert [json.loads(line)["case"] for line in out.read_text().splitlines()] == ["fit", "lora:1k"]
    names = [f"{case}-without-4-5-seed-0" for case in ("fit", "lora-1k")]
    assert [(tmp_path / "kept" / name / "config.json").is_file() for name in names] == [True, True]


HELPS_NOT = NoBetterError("healing does not help")


@pytest.fixture
def quick(reference, tmp_path, monkeypatch):
    """Run a study whose healing never helps; return its exit status and how often it measured perplexities."""

    def run(judge: Path, *more: str, error: UserError = HELPS_NOT) -> tuple[int, int]:
        measured = []

        def measure(self, folder, dropped=()):
            measured.append(dropped)
            return dict.fromkeys(self.windows, 1.0)

        def heal(*arguments, **options):
            raise error

        monkeypatch.setattr(JudgedModel, "log_perplexities", measure)
        monkeypatch.setattr(heal_study, "heal", heal)
        words = ["heal_study", str(reference), "--drop", "4-5", "--text", str(judge), "--case", "fit", "--window", "32"]
        monkeypatch.setattr(sys, "argv", [*words, "--judge", str(judge), "-o", str(tmp_path / "heal.jsonl"), *more])
        with pytest.raises(SystemExit) as end:
            heal_study.main()
        return int(end.value.code or 0), len(measured)

    return run


@pytest.fixture
def judge(tmp_path):
    path = tmp_path / "judge.txt"
    path.write_text("\n\n\n".join(topics.values()))
    return path


def test_what_was_measured_of_other_judged_text_is_measured_anew(quick, judge, tmp_path):
    out = tmp_path / "heal.jsonl"
    assert quick(judge) == (0, 2)  # dense and pruned
    assert quick(judge) == (0, 0)
    assert len(read_records(out)) == 1
    (tmp_path / "other").mkdir()
    same_name = tmp_path / "other" / "judge.txt"
    same_name.write_text(judge.read_text()[::-1])
    other_name = tmp_path / "other.txt"
    other_name.write_text(judge.read_text())
    for number, (one, *more) in enumerate(
        ((judge, "--judge-tokens", "512"), (same_name,), (judge, "--judge", str(other_name)))
    ):
        assert quick(one, *more) == (0, 2)
        assert quick(one, *more) == (0, 0)
        assert len(read_records(out)) == number + 2


def test_an_error_ends_the_study_and_is_no_result(quick, judge, tmp_path, capsys):
    """A wrong setting, or a text too short, says nothing about healing."""
    assert quick(judge, error=UserError("the text is too short"))[0] == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: the text is too short"
    assert read_records(tmp_path / "heal.jsonl") == []
    assert quick(judge)[0] == 0
    assert [record["refused"] for record in read_records(tmp_path / "heal.jsonl")] == ["healing does not help"]


def test_without_a_gap_there_is_no_share_of_it():
    made = figures({"a": 1.0}, {"a": 1.0}, {"a": 0.9})
    assert made["a"]["gap_closed"] is None
    assert cell(made["a"]) == "2.7; 2.7; **2.5** (-)"


def test_models_are_judged_on_the_device_that_is_named(reference, judge, monkeypatch):
    asked = []

    def load(folder, device):
        asked.append(device)
        raise UserError("loaded")

    monkeypatch.setattr(heal_study, "load_on", load)
    with pytest.raises(UserError, match="loaded"):
        JudgedModel(open_model(reference), [str(judge)], 64, 32, "cpu").log_perplexities(open_model(reference))
    assert asked == ["cpu"]


def test_windows_of_another_length_are_told_apart_though_their_tokens_are_the_same(reference, tmp_path):
    text = tmp_path / "judge.txt"
    text.write_text("The pilot boat met the barque at the harbour mouth. " * 20)  # too short for passages
    dense = open_model(reference)
    first, second = (JudgedModel(dense, [str(text)], 64, window).digests["judge.txt"] for window in (32, 16))
    assert (first[0], second[0]) == (32, 16)
    assert first[1] == second[1]


@pytest.mark.parametrize("field", ["weights_sha256", "judged_on"])
@pytest.mark.parametrize("value", [None, "other"])
def test_a_line_of_another_model_or_an_older_release_is_kept_and_not_gone_on_with(quick, judge, tmp_path, field, value):
    out = tmp_path / "heal.jsonl"
    quick(judge)
    (record,) = read_records(out)
    del record[field]
    out.write_text(json.dumps(record | ({field: value} if value else {})) + "\n")
    before = out.read_text()
    assert quick(judge) == (0, 2)
    assert out.read_text().startswith(before)
    assert [line["key"] for line in read_records(out)] == [record["key"]] * 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is not JSON: "),
        ("[1]", "line 1 is no JSON object; move the file away"),
        ('{"model": "m"}', "line 1 is not of this study; give another file"),
    ],
)
def test_a_damaged_line_is_refused_in_one_line_before_anything_is_measured(quick, judge, tmp_path, capsys, line, said):
    (tmp_path / "heal.jsonl").write_text(f"{line}\n")
    assert quick(judge) == (2, 0)
    (err,) = capsys.readouterr().err.splitlines()
    assert said in err


def test_a_window_too_short_to_heal_is_refused_before_anything_is_measured(quick, judge, capsys):
    assert quick(judge, "--window", "0") == (2, 0)
    assert capsys.readouterr().err.splitlines() == ["error: --window must be at least 8, got 0"]
