"""The study on the bundled model, small: records, resuming, the optimum's race, and the page that reads them."""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import bench.studies.selection_study as study
from bench.studies.selection_report import main as report
from bench.studies.selection_report import read_groups
from bench.studies.selection_study import best_of_all, read_study
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.quality.evaluator import Evaluator
from mi_prun.selection import hybrid
from mi_prun.selection.context import Context

REFERENCE = Path(__file__).parents[3] / "bench" / "reference"
METHODS = "hybrid:3,bi,greedy-loss,tail"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "harbour.txt"
    path.write_text(" ".join(f"In the year {n} there were {n * n % 97} ships in the harbour." for n in range(8_000)))
    return path


def run(text: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr(study, "EXHAUSTIVE_LIMIT", 12)  # the optimum of one block only
    words = [
        "--most-blocks",
        "2",
        "--methods",
        METHODS,
        "--seeds",
        "2",
        "--tokens",
        "256",
        "--evaluation-tokens",
        "256",
        "--ranking-tokens",
        "256",
        "--window",
        "32",
    ]
    words += [*more, "-o", str(out)]
    monkeypatch.setattr("sys.argv", ["study", str(REFERENCE), "--text", f"harbour={text}", *words])
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(text, out, monkeypatch)
    return out


@pytest.fixture
def made(records: Path, text: Path) -> study.Study:
    options = argparse.Namespace(
        output=str(records),
        methods=METHODS,
        estimator="gaussian",
        seeds=2,
        seed=None,
        tokens=256,
        ranking_tokens=256,
        evaluation_tokens=256,
        window=32,
        device="cpu",
        dtype="float32",
        most_sets=None,
    )
    return study.Study(open_model(REFERENCE), "reference", "harbour", [str(text)], options)


def test_every_choice_is_measured_on_the_same_text_beside_the_optimum(records: Path) -> None:
    rows = read_study(records / "reference.harbour.jsonl")
    assert len(rows) == 4 * 2 * 2  # methods, numbers of blocks, seeds
    assert len({row.dense_perplexity for row in rows}) == 1
    assert {row.ranked_tokens for row in rows} == {256}
    assert len({row.row.analysis for row in rows}) == 2  # a text of its own for each seed
    for row in rows:
        if len(row.row.dropped) == 1:
            assert row.optimum_perplexity is not None
            assert row.perplexity >= row.optimum_perplexity * (1 - 1e-9)
        else:
            assert row.optimum_perplexity is None
    optimum = json.loads((records / "reference.harbour.optimum.json").read_text())
    assert optimum["sets_measured"]["1"][0] == 12


def test_a_killed_run_goes_on_from_its_records(records: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = records / "reference.harbour.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-3]))
    monkeypatch.setattr(study.Study, "optimum", lambda self, evaluation, ks: {1: read_study(path)[0].optimum_dropped})
    run(text, records, monkeypatch)

    def choices(lines: str) -> list[tuple[object, ...]]:
        rows = (json.loads(line) for line in lines.splitlines())
        return [(row["seed"], row["row"]["method"], row["row"]["dropped"], row["perplexity"]) for row in rows]

    assert choices(path.read_text()) == choices(whole)


def test_a_proposer_is_left_out_and_the_rows_say_so(
    records: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(context: object, k: int) -> list[tuple[int, ...]]:
        raise AssertionError("it proposes all the same")

    shutil.copytree(records, tmp_path / "out")
    proposers = {**study.PROPOSERS, "mi": asked}  # a copy, as the study takes one out
    monkeypatch.setattr(study, "PROPOSERS", proposers)
    monkeypatch.setattr(hybrid, "PROPOSERS", proposers)
    run(text, tmp_path / "out", monkeypatch, "--methods", "hybrid:3", "--leave-out", "mi", "--seed", "0")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    rows = read_study(path)
    before = read_study(records / path.name)
    assert rows[: len(before)] == before
    assert [(row.label, len(row.row.dropped), row.left_out) for row in rows[len(before) :]] == [
        ("hybrid:3 without mi", 1, "mi"),
        ("hybrid:3 without mi", 2, "mi"),
    ]
    assert not any(row.left_out for row in before)


@pytest.mark.long
def test_recall_of_what_compares_is_said_by_its_rows(
    records: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    def asked(context: Context, k: int) -> list[tuple[int, ...]]:
        shares.append(context.recall)
        return []

    shutil.copytree(records, tmp_path / "out")
    monkeypatch.setitem(study.PROPOSERS, "mi", asked)
    run(text, tmp_path / "out", monkeypatch, "--methods", "hybrid:3", "--recall", "0.25", "--seed", "0")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert {row.label for row in read_study(path) if row.recall is not None} == {"hybrid:3 --recall 0.25"}
    assert set(shares) == {0.25}


def test_a_pair_is_compared_on_the_confirming_text(made: study.Study) -> None:
    pair = made.pair((2, 3), (0, 1), 512)
    losses = Evaluator(made.model, made.windows("confirming", 512)).measure([(2, 3), (0, 1)])
    assert pair.perplexity == pytest.approx([math.exp(loss.ce_nats) for loss in losses])
    assert pair.difference_nats == pytest.approx(losses[0].ce_nats - losses[1].ce_nats)
    assert pair.difference_nats < -3 * pair.standard_error_nats < 0
    same = made.pair((2, 3), (2, 3), 512)
    assert same.difference_nats == same.standard_error_nats == 0


def test_the_optimum_is_found_where_it_is_missing_and_only_of_the_same_text(
    made: study.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "EXHAUSTIVE_LIMIT", 66)
    windows = made.evaluation_windows()
    known = json.loads(made.path.with_suffix(".optimum.json").read_text())
    made.path = tmp_path / "reference.harbour.jsonl"
    path = made.path.with_suffix(".optimum.json")
    path.write_text(json.dumps(known))
    best = made.optimum(Evaluator(made.model, windows), [1, 2])
    assert best[1] == tuple(known["optimum"]["1"])
    assert len(best[2]) == 2
    assert json.loads(path.read_text())["sets_measured"]["2"][0] == 66
    with pytest.raises(UserError, match="is of another evaluation text"):
        made.optimum(Evaluator(made.model, windows[:-1]), [1])


def test_the_page_ranks_what_the_records_say(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(records), "-o", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit) as ended:
        report()
    assert ended.value.code == 0
    page = (tmp_path / "page.md").read_text()
    (group,) = read_groups(records)
    assert "## reference (12 blocks), harbour" in page
    assert "k=1 |" in page
    assert "k=2* |" in page  # whose optimum is not known
    for label in group.labels:
        cell = re.search(rf"\| {label} \| (\d\.\d+) ± \d\.\d+ \((\d)\)", page)
        assert cell is not None
        assert float(cell[1]) == pytest.approx(group.mean(label, 1), abs=1e-3)
    assert min(group.mean(label, 2) for label in group.labels) >= 1
    assert group.rank("tail:0", 2) == 4


@pytest.mark.parametrize("damaged", ["{", "[]", '{"optimum": {}}', '{"optimum": [], "sets_measured": {}}'])
def test_damaged_optima_are_one_line(made: study.Study, tmp_path: Path, damaged: str) -> None:
    made.path = tmp_path / "reference.harbour.jsonl"
    (tmp_path / "reference.harbour.optimum.json").write_text(damaged)
    evaluation = Evaluator(made.model, made.evaluation_windows()[:1])
    with pytest.raises(UserError, match=r"optimum.json (cannot be read|is not a JSON object|is no file of this study)"):
        made.optimum(evaluation, [1])


@pytest.mark.long
def test_the_race_finds_the_least_loss_of_all_sets(made: study.Study) -> None:
    """By the plain way: every set on every window."""
    evaluator = Evaluator(made.model, made.evaluation_windows())
    sets = list(combinations(range(2, 8), 2))
    best, counts = best_of_all(evaluator, sets)
    losses = Evaluator(made.model, evaluator.windows).measure(sets)
    assert best == min(zip(losses, sets, strict=True), key=lambda pair: pair[0].ce_nats)[1]
    assert counts[0] == 15
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("windows", "asked"), [(16, [8, 8, 8, 16]), (1, [1] * 4)])
def test_the_optimum_is_looked_for_on_windows_enough_to_know_the_error(windows: int, asked: list[int]) -> None:
    class Stub:
        def __init__(self) -> None:
            self.windows, self.asked = np.zeros((windows, 4)), list[int]()

        def by_window(self, sets: list[tuple[int, ...]], windows: int) -> object:
            self.asked.append(windows)
            losses = np.random.default_rng(0).normal(size=(len(sets), windows, 2))
            losses[sets.index((1,))] -= 9
            return losses

    stub = Stub()
    assert best_of_all(stub, [(0,), (1,), (2,)])[0] == (1,)  # type: ignore[arg-type]
    assert stub.asked == asked[: len(stub.asked)]


def test_excerpts_of_different_seeds_share_nothing(made: study.Study, tmp_path: Path) -> None:
    texts = []
    roles: tuple[study.Role, ...] = ("evaluation", "confirming", 0, 1)
    for role in roles:
        folder = tmp_path / str(role)
        folder.mkdir()
        (excerpts,) = made.excerpts(role, folder)
        texts.append(Path(excerpts).read_text())
    sentences = [set(re.findall(r"In the year \d+ there were \d+ ships in the harbour\.", t)) for t in texts]
    assert all(sentences)
    assert not any(a & b for a, b in combinations(sentences, 2))


def test_a_text_of_two_kinds_is_evaluated_on_both(made: study.Study, text: Path, tmp_path: Path) -> None:
    birds = tmp_path / "birds.txt"
    birds.write_text(text.read_text().replace("ships", "birds"))
    both = study.Study(made.folder, "reference", "both", [str(text), str(birds)], made.options)
    rows = [made.folder.tokenizer.decode(row) for row in both.evaluation_windows()]
    assert [sum(word in row for row in rows) for word in ("ship", "bird")] == [4, 4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--pair 2,3 2,4", "--pair needs --confirm TOKENS"),
        ("--seed 3", "--seed must be in 0..2, as --seeds is 3, got 3"),
        ("--seed -1 --seeds 1", "--seed must be in 0..0, as --seeds is 1, got -1"),
        ("--recall 0.6", "--recall is the share of a window that repeats its beginning, 0 to 0.5, got 0.6"),
        ("--least-blocks 0", "--least-blocks to --most-blocks must be within 1..11 of 12 blocks, got 0 to 6"),
        ("--most-blocks 0", "must be within 1..11 of 12 blocks, got 1 to 0"),
        ("--most-blocks 12", "must be within 1..11 of 12 blocks, got 1 to 12"),
        ("--window 0", "--window must be over 5 (the first 4 tokens are left out), got 0"),
        ("--confirm 512 --recall 0", "--recall does not go with --confirm, which chooses nothing; leave it out"),
        ("--confirm 512 --leave-out mi", "--leave-out does not go with --confirm, which chooses nothing; leave it out"),
    ],
)
def test_what_no_study_is_made_with_is_refused_before_it_begins(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--text", "self", *words.split(), "-o", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["study", str(REFERENCE), *arguments])
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert "mi" in study.PROPOSERS
    assert not (tmp_path / "out").exists()


def test_rows_of_other_settings_are_not_gone_on_with(
    records: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(records, out)
    before = (out / "reference.harbour.jsonl").read_text()
    words = ["--methods", METHODS, "--seeds", "2", "--tokens", "256", "--window", "32", "--most-blocks", "2"]
    words += ["--ranking-tokens", "256", "--evaluation-tokens", "512"]  # 256 before
    monkeypatch.setattr("sys.argv", ["study", str(REFERENCE), "--text", f"harbour={text}", *words, "-o", str(out)])
    (out / "reference.harbour.optimum.json").unlink()
    monkeypatch.setattr(study, "EXHAUSTIVE_LIMIT", 0)
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has rows of other settings (248 evaluation tokens, " in line
    assert "not 496 evaluation tokens, " in line
    assert (out / "reference.harbour.jsonl").read_text() == before


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the study, which must end in one line."""
    monkeypatch.setattr("sys.argv", ["study", str(REFERENCE), *arguments])
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds", "3"], r"\([0-9a-f]{12} calibration sha256, not [0-9a-f]{12} calibration sha256\)"),
        (["--ranking-tokens", "512"], r"\(256 calibration tokens, .*, not 512 calibration tokens, "),
        (["--tokens", "320"], r"\([0-9a-f]{12} calibration sha256, not "),
    ],
)
def test_rows_of_another_calibration_text_are_not_gone_on_with(
    more: list[str],
    said: str,
    records: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(records, out)
    before = (out / "reference.harbour.jsonl").read_text()
    monkeypatch.setattr(study, "EXHAUSTIVE_LIMIT", 12)
    words = ["--text", f"harbour={text}", "--methods", "bi", "--seeds", "2", "--tokens", "256", "--window", "32"]
    words += ["--evaluation-tokens", "256", "--ranking-tokens", "256", "--most-blocks", "3", "--seed", "0"]
    line = refused([*words, *more, "-o", str(out)], monkeypatch, capsys)
    assert re.search("has rows of other settings " + said, line)
    assert (out / "reference.harbour.jsonl").read_text() == before


def test_rows_of_another_text_or_model_are_not_gone_on_with_whatever_their_seed(
    made: study.Study, text: Path, tmp_path: Path
) -> None:
    made.options.least_blocks, made.options.most_blocks = 1, 2
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("ships", "birds"))
    with pytest.raises(
        UserError, match=r"\([0-9a-f]{12} evaluation sha256, not [0-9a-f]{12} evaluation sha256\); give"
    ):
        study.Study(made.folder, "reference", "harbour", [str(other)], made.options).run()
    with pytest.raises(UserError, match=r"\([0-9a-f]{12} weights sha256, not 000000000000 weights sha256\); give"):
        made.check_alike({"weights_sha256": "0" * 64})
    made.check_alike({"calibration_tokens": 1}, seed=2)  # no row is of this one


def test_what_older_rows_do_not_say_is_not_compared(made: study.Study) -> None:
    new = ("evaluation_sha256", "calibration_sha256", "dtype", "weights_sha256")
    assert {made.known[0].dtype} == {"float32"}
    fields = [{name: value for name, value in row.model_dump().items() if name not in new} for row in made.known]
    made.known = [study.StudyRow.model_validate(older) for older in fields]
    made.check_alike(dict.fromkeys(new, "other"))
    with pytest.raises(UserError, match=r"\(32 window tokens, not 64 window tokens\)"):
        made.check_alike({"window_tokens": 64, "weights_sha256": "other"})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "line 2: field model: Field required; move the file away"),
        ('{"model": ', "line 2: Invalid JSON"),
        (None, "line is cut short; remove it"),
    ],
)
def test_a_damaged_line_is_refused_in_one_line(records: Path, tmp_path: Path, line: str | None, said: str) -> None:
    first = (records / "reference.harbour.jsonl").read_text().splitlines()[0]
    path = tmp_path / "rows.jsonl"
    path.write_text(first + "\n" + ("{" if line is None else f"{line}\n{first}\n"))
    with pytest.raises(UserError, match=said) as refusal:
        read_study(path)
    assert "\n" not in str(refusal.value)


def test_another_confirming_text_does_not_take_the_place_of_the_first(
    made: study.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.path = tmp_path / "reference.harbour.jsonl"  # of no rows: the dense model alone is confirmed
    path = study.confirmed_path(made.path)
    made.confirm(512)
    before = path.read_text()
    made.confirm(512)
    assert path.read_text() == before
    with pytest.raises(UserError, match=r"another confirming text or model \(496 tokens, .* not 248 and .*; give its"):
        made.confirm(256)
    windows = made.windows("confirming", 512)
    monkeypatch.setattr(made, "windows", lambda role, tokens: windows.flip(1))
    with pytest.raises(UserError, match=r"another confirming text or model \(496 tokens, .* not 496 and .*; give its"):
        made.confirm(512)
    assert path.read_text() == before


def test_a_text_too_short_for_a_part_of_the_study_is_refused(made: study.Study) -> None:
    with pytest.raises(UserError, match=r"has [\d,]+ of [\d,]+ tokens for a part of the study"):
        made.windows("confirming", 10_000_000)


@pytest.mark.long
def test_what_was_found_is_measured_once_more_on_text_of_its_own(
    made: study.Study, records: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "confirmed"
    shutil.copytree(records, out)
    words = ["--text", f"harbour={text}", "--seeds", "2", "--tokens", "256", "--window", "32", "--confirm", "1024"]
    words += ["--ranking-tokens", "256"]
    monkeypatch.setattr("sys.argv", ["study", str(REFERENCE), *words, "-o", str(out)])
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 0
    (plain,), (group,) = read_groups(records), read_groups(out)
    assert group.confirmed is not None
    assert plain.confirmed is None
    assert group.tokens == 32 * 31
    rows = read_study(out / "reference.harbour.jsonl")
    assert set(group.confirmed.perplexity) >= {study.key_of(row.row.dropped) for row in rows} | {""}
    assert {group.perplexity(row) for row in rows} != {row.perplexity for row in rows}
    assert min(group.mean(label, 1) for label in group.labels) >= 1

    path = out / "reference.harbour.confirmed.json"
    confirmed = json.loads(path.read_text())
    evaluator = Evaluator(made.model, made.windows("confirming", 1024))
    assert set(confirmed["in_part"].values()) == {8 * 31}  # those far behind: from their ratio to the best there
    for own in confirmed["in_part"]:
        alike = [other for other in confirmed["perplexity"] if other.count(",") == own.count(",")]
        ce = evaluator.by_window(map(study.blocks_of, alike), windows=8)[..., 1].sum(1) / (8 * 31)
        expected = confirmed["perplexity"][alike[ce.argmin()]] * math.exp(ce[alike.index(own)] - ce.min())
        assert confirmed["perplexity"][own] == pytest.approx(expected, rel=1e-6)
    assert confirmed["error_nats"].keys() == confirmed["perplexity"].keys()
    whole = [key for key in confirmed["perplexity"] if key.count(",") == 1 and key not in confirmed["in_part"]]
    ce = evaluator.by_window(map(study.blocks_of, whole))[..., 1] / 31
    apart = ce - ce[ce.mean(1).argmin()]
    errors = apart.std(1, ddof=1) / 32**0.5
    assert [confirmed["error_nats"][key] for key in whole] == pytest.approx(list(errors), rel=1e-4, abs=1e-9)
    assert max(errors) > 0 or len(whole) == 1
    key = next(key for key in confirmed["perplexity"] if key and key not in confirmed["in_part"])
    confirmed["perplexity"][key] = 1.0
    path.write_text(json.dumps(confirmed))
    with pytest.raises(SystemExit):
        study.main()
    assert json.loads(path.read_text())["perplexity"][key] == 1.0  # what is there is not measured again
