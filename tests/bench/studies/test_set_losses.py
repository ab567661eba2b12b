"""Losses of sets are those that the evaluator measures, and are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from bench.studies import set_losses
from bench.studies.selection_study import StudyRow
from bench.studies.set_losses import Items, LastWords, check_dtype, losses, read_last_words, read_losses, sets_of
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model
from mi_prun.quality.evaluator import Dropped, Evaluator

REFERENCE = Path(__file__).parents[3] / "bench" / "reference"


def test_they_are_those_of_the_evaluator() -> None:
    model = load_block_model(open_model(REFERENCE), device=torch.device("cpu"), dtype=torch.float32)
    windows = torch.randint(5, 4_000, (3, 20), generator=torch.Generator().manual_seed(0))
    sets = [(), (3,), (0, 7, 8)]
    found = dict(losses(model, windows, sets))
    wanted = [loss.ce_nats for loss in Evaluator(model, windows).measure(sets)]
    assert [found[dropped] for dropped in sets] == pytest.approx(wanted, rel=1e-5)


def test_only_what_counts_is_measured() -> None:
    model = load_block_model(open_model(REFERENCE), device=torch.device("cpu"), dtype=torch.float32)
    windows = torch.randint(5, 4_000, (3, 20), generator=torch.Generator().manual_seed(0))
    with model.without((3,)) as pruned, torch.inference_mode():
        logits = pruned(input_ids=windows, use_cache=False).logits
    wanted = torch.nn.functional.cross_entropy(logits[:, 12:-1].flatten(0, 1), windows[:, 13:].flatten())
    assert dict(losses(model, windows, [(3,)], 12)) == {(3,): pytest.approx(float(wanted), rel=1e-5)}


def test_the_repeated_half_of_each_window_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "numbers.txt"
    text.write_text(" ".join(str(n * n * 7919 % 9973) for n in range(20_000)))
    asked: list[tuple[torch.Tensor, int]] = []

    def measured(
        model: BlockModel, windows: torch.Tensor, sets: Sequence[Dropped], first: int
    ) -> Iterator[tuple[Dropped, float]]:
        asked.append((windows, first))
        return losses(model, windows, sets, first)

    monkeypatch.setattr(set_losses, "losses", measured)
    settings = ["--text", str(text), "--tokens", "256", "--window", "64", "--dtype", "float32", "--recall"]
    monkeypatch.setattr(
        "sys.argv", ["set_losses", str(REFERENCE), *settings, "--drop", "11", "-o", str(tmp_path / "out.jsonl")]
    )
    with pytest.raises(SystemExit) as ended:
        set_losses.main()
    assert not ended.value.code
    ((windows, first),) = asked
    assert first == 32
    assert torch.equal(windows[:, 32:], windows[:, :32])
    (row,) = read_losses(tmp_path / "out.jsonl")
    assert row.recall


def test_a_set_that_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "ships.txt"
    text.write_text(" ".join(f"In {n} there were {n * n % 97} ships." for n in range(3_000)))
    out = tmp_path / "out.jsonl"

    def run(*drop: str) -> int:
        words = ["--text", str(text), "--tokens", "64", "--window", "32", "--dtype", "float32", "-o", str(out)]
        monkeypatch.setattr("sys.argv", ["set_losses", str(REFERENCE), *words, *(f"--drop={one}" for one in drop)])
        with pytest.raises(SystemExit) as ended:
            set_losses.main()
        return int(ended.value.code or 0)

    assert run("3", "2-3") == 0
    first = out.read_text()
    assert [row.dropped for row in read_losses(out)] == [(3,), (2, 3)]
    assert run("2,3", "4") == 0
    assert out.read_text().startswith(first)
    assert [row.dropped for row in read_losses(out)] == [(3,), (2, 3), (4,)]
    assert {row.recall for row in read_losses(out)} == {False}
    text.write_text("Something else. " * 3_000)
    assert run("3") != 0


def test_rows_in_other_windows_are_not_gone_on_with_though_their_tokens_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "ships.txt", tmp_path / "out.jsonl"
    text.write_text(" ".join(f"In {n} there were {n * n % 97} ships." for n in range(20)))  # too short for passages

    def run(window: int) -> int:
        words = ["--text", str(text), "--tokens", "64", "--window", str(window), "--dtype", "float32", "-o", str(out)]
        monkeypatch.setattr("sys.argv", ["set_losses", str(REFERENCE), *words, "--drop=3"])
        with pytest.raises(SystemExit) as ended:
            set_losses.main()
        return int(ended.value.code or 0)

    assert run(32) == 0
    before = out.read_text()
    capsys.readouterr()
    assert run(16) == 2
    said = "has rows in windows of 32, not of 16; give --window 32, or another file"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {out} {said}"
    assert out.read_text() == before


@pytest.mark.parametrize("read", [read_losses, read_last_words])
def test_a_damaged_line_is_refused_in_one_line(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for line, said in (("{}", "field model: Field required"), ("{", "Invalid JSON")):
        path.write_text(f"{line}\n")
        with pytest.raises(UserError, match=rf"rows\.jsonl, line 1: {said}.*; move the file away"):
            read(path)


def test_last_words_are_those_that_the_model_goes_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that end in what stock transformers says greedily, and items that end in something else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    stock = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32).eval()
    items, dense = [], 0
    for context in ("The old man went to the", "It was", "She took the lamp and went out of the"):
        tokens = tokenizer(context, add_special_tokens=False, return_tensors="pt")["input_ids"]
        said = tokenizer.decode(stock(tokens).logits[0, -1].argmax()).strip()
        for word in (said, "xylophone"):
            whole = tokenizer(f"{context} {word}", add_special_tokens=False)["input_ids"]
            logits = stock(torch.tensor([whole])).logits[0].argmax(-1).tolist()
            dense += logits[tokens.shape[1] - 1 : -1] == whole[tokens.shape[1] :]
            items.append({"context": context, "continuation": word})
    path, out = tmp_path / "items.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    words = ["--last-words", str(path), "--dtype", "float32", "-o", str(out), "--drop", "2", "--drop", "0-7"]
    monkeypatch.setattr("sys.argv", ["set_losses", str(REFERENCE), *words])
    for _ in range(2):  # the second time nothing is measured
        with pytest.raises(SystemExit) as ended:
            set_losses.main()
        assert not ended.value.code
    assert [(row.dropped, row.items) for row in read_last_words(out)] == [((2,), 6), (tuple(range(8)), 6)]
    model = load_block_model(open_model(REFERENCE), device=torch.device("cpu"), dtype=torch.float32)
    counts = Items(path, tokenizer, 6).foretold(model, [(), tuple(range(8))])
    assert counts[0] == dense >= 2
    assert counts[1] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no items; give JSON lines of context and continuation"),
        ('{"context": "It was"}\n', "line 1: an item has context and continuation, each a string with words in it"),
        (
            '{"context": "It was", "continuation": 3}\n',
            "line 1: an item has context and continuation, each a string with words in it",
        ),
        (
            '{"context": "", "continuation": "dark"}\n',
            "line 1: an item has context and continuation, each a string with",
        ),
        ('{"context": "It was", "continuation": " "}\n', "line 1: an item has context and continuation, each a string"),
        ("[1]\n", "line 1: an item has context and continuation, each a string with words in it"),
    ],
)
def test_a_file_that_has_no_last_words_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        Items(path, open_model(REFERENCE).tokenizer, 6)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no rows; give records of"),
        ([("four", (3,))], "has rows of four, not of reference; give records of reference, or --name four"),
        ([("reference", (3,)), ("reference", (2, 12))], r"drops block 12, but reference has blocks 0\.\.11; give"),
    ],
)
def test_sets_of_another_study_are_refused(
    row: Callable[..., StudyRow], tmp_path: Path, rows: list[tuple[str, Dropped]], said: str
) -> None:
    path = tmp_path / "study.jsonl"
    path.write_text("".join(f"{row(dropped=dropped, model=model).model_dump_json()}\n" for model, dropped in rows))
    with pytest.raises(UserError, match=said):
        sets_of(path, "reference", 12)


def test_sets_of_a_study_come_with_the_dense_model_the_smallest_first(
    row: Callable[..., StudyRow], tmp_path: Path
) -> None:
    path = tmp_path / "study.jsonl"
    path.write_text("".join(f"{row(dropped=dropped).model_dump_json()}\n" for dropped in ((2, 3), (3,), (1,), (3,))))
    assert sets_of(path, "four", 4) == [(), (1,), (3,), (2, 3)]


def test_a_file_of_one_dtype_is_not_gone_on_with_in_another(tmp_path: Path) -> None:
    """One that has both already is: its rows say so."""
    own, other = (
        LastWords(model="m", text="t", items_sha256="", items=1, dtype=dtype, dropped=(), foretold=0)
        for dtype in ("float32", "bfloat16")
    )
    path = tmp_path / "out.jsonl"
    for known in ([], [own], [own, other]):
        check_dtype(path, known, "float32")
    with pytest.raises(UserError, match="has rows in bfloat16, not in float32; give --dtype bfloat16, or another file"):
        check_dtype(path, [other], "float32")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--last-words", "x", "--recall"], "--recall does not go with --last-words; leave it out"),
        (["--last-words", "x", "--tokens", "64"], "--tokens does not go with --last-words; leave it out"),
        (["--last-words", "x", "--window", "64"], "--window does not go with --last-words; leave it out"),
        (["--text", "x", "--items", "5"], "--items does not go with --text; leave it out"),
        (["--last-words", "x", "--items", "0"], "--items must be 1 or more, got 0"),
        (["--text", "x", "--window", "0"], "--window must be at least 5, got 0"),
    ],
)
def test_options_that_would_not_count_are_refused_in_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["set_losses", str(REFERENCE), *words, "-o", str(tmp_path / "out.jsonl")])
    with pytest.raises(SystemExit) as ended:
        set_losses.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {said}"]
