"""Measure the loss of a model without each of some sets of blocks, and keep it: the ground under a score.

    python -m bench.studies.set_losses MODEL --text TEXT.txt --drop 9 --drop 13-18 -o OUT.jsonl

Each line of the records holds one set. A set that is there is not measured again, so a killed run goes on. Without
`--drop` the dense model and each single block are measured.

`--recall` lets the second half of each window repeat the first, and measures that half: what a set costs where the
words were there before.

`--last-words FILE` in place of `--text` counts the last words that each set foretells whole. The file is as LAMBADA:
JSON lines of `context` and `continuation`. `--sets-of FILE` takes the sets that a study chose, and the dense model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.studies.selection_study import read_rows, read_study
from mi_prun.artefact import Record
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import append_line
from mi_prun.json_lines import parse_json, read_whole_lines
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.plan.ratio import parse_blocks
from mi_prun.quality.evaluator import Dropped, Evaluator, NotFiniteError
from mi_prun.text.calibration import begins_with_bos, load_calibration, start_tokens, tokens_digest
from mi_prun.text.recall import repeating

TEXT_SEED = 10_000
BATCH_TOKENS = 2_048
SETS_AT_ONCE = 6
ROWS = 128  # of logits at a time
ROWS_AT_ONCE = 16  # of items
LEAST_WINDOW = 5  # BOS, and two halves of two tokens each: the last one is predicted
FIELDS = ("context", "continuation")
OF_TEXT: dict[str, int | bool] = {"recall": False, "tokens": 2_048, "window": 512}  # options, and their defaults
OF_LAST_WORDS = {"items": 200}


class SetLoss(Record):
    """The cross-entropy of a set, nats a token.

    text_sha256: of the token ids, as `tokens_digest` gives it. recall: of the second half of each window, which repeats
    the first.
    """

    model: str
    text: str
    text_sha256: str
    tokens: int
    window_tokens: int
    recall: bool = False
    dtype: str
    dropped: Dropped
    ce_nats: float

    @property
    def perplexity(self) -> float:
        """Return the perplexity; infinite where no float holds it."""
        return math.exp(self.ce_nats) if self.ce_nats < 700 else math.inf


class LastWords(Record):
    """How many last words a set foretells whole, greedily. items_sha256: of the items' token ids."""

    model: str
    text: str
    items_sha256: str
    items: int
    dtype: str
    dropped: Dropped
    foretold: int


def read_last_words(path: Path) -> list[LastWords]:
    """Read the records; none where there is no file."""
    return read_rows(path, LastWords)


def read_losses(path: Path) -> list[SetLoss]:
    """Read the records; none where there is no file."""
    return read_rows(path, SetLoss)


@torch.inference_mode()
def losses(
    model: BlockModel, windows: Tensor, sets: Sequence[Dropped], first: int = 0
) -> Iterator[tuple[Dropped, float]]:
    """Yield each set with its mean cross-entropy over the predicted tokens, a few sets at a time.

    first: the first position of a window that predicts a token which counts.
    """
    evaluator = Evaluator(model, windows, batch_tokens=BATCH_TOKENS)
    for start in range(0, len(sets), SETS_AT_ONCE):
        some = sets[start : start + SETS_AT_ONCE]
        sums = [0.0] * len(some)
        for tokens in torch.split(windows, evaluator.batch):
            targets = tokens[:, first + 1 :].flatten().to(model.device)
            for number, final in enumerate(evaluator.final_states(tokens, some)):
                states = final[:, first:-1].flatten(0, 1)
                for rows in torch.split(torch.arange(len(targets)), ROWS):
                    logits = model.logits(states[rows, None])[:, 0].float()
                    sums[number] += float(cross_entropy(logits, targets[rows], reduction="sum"))
        count = windows.shape[0] * (windows.shape[1] - first - 1)
        yield from zip(some, (total / count for total in sums), strict=True)


class Items:
    """The first items of a file of last words, as tokens; the shortest come first.

    Rows are padded behind the end, where a causal model sees nothing of it.
    """

    def __init__(self, path: Path, tokenizer: Any, count: int) -> None:
        start = start_tokens(tokenizer)
        self.rows: list[tuple[list[int], int]] = []  # tokens, and how many of them are the context
        for number, line in enumerate(list(read_whole_lines(path))[:count], 1):
            item = parse_json(line, f"{path}, line {number}")
            values = [item.get(field) for field in FIELDS] if isinstance(item, dict) else [None]
            if not all(isinstance(value, str) and value.strip() for value in values):
                raise UserError(
                    f"{path}, line {number}: an item has {' and '.join(FIELDS)}, each a string with words in it"
                )
            context = tokenizer(item["context"], add_special_tokens=False)["input_ids"]
            whole = tokenizer(f"{item['context']} {item['continuation']}", add_special_tokens=False)["input_ids"]
            self.rows.append((start + whole, len(start) + len(context)))
        if not self.rows:
            raise UserError(f"{path} has no items; give JSON lines of {' and '.join(FIELDS)}")
        self.rows.sort(key=lambda row: len(row[0]))
        self.digest = hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()

    @torch.inference_mode()
    def foretold(self, model: BlockModel, sets: Sequence[Dropped]) -> list[int]:
        """Return for each set how many last words it foretells whole."""
        evaluator, counts = Evaluator(model, torch.zeros(1, 2, dtype=torch.long)), [0] * len(sets)
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            some = self.rows[start : start + ROWS_AT_ONCE]
            longest = len(some[-1][0])
            tokens = torch.tensor([row + [row[-1]] * (longest - len(row)) for row, _ in some])
            for number, final in enumerate(evaluator.final_states(tokens, sets)):
                for state, (row, context) in zip(final, some, strict=True):
                    said = model.logits(state[None, context - 1 : len(row) - 1])[0].argmax(-1)
                    counts[number] += said.tolist() == row[context:]
        return counts


def wanted_sets(options: argparse.Namespace, name: str, num_blocks: int) -> list[Dropped]:
    """Return the sets that are asked for: those of a study, the smallest first, those named, or each single block."""
    if options.sets_of:
        return sets_of(options.sets_of, name, num_blocks)
    if options.drop:
        return [parse_blocks(word, num_blocks, "--drop") for word in options.drop]
    return [(), *((block,) for block in range(num_blocks))]


def sets_of(path: Path, name: str, num_blocks: int) -> list[Dropped]:
    """Return the dense model and the sets that a study chose. Raises UserError where they are not of this model."""
    rows = read_study(path)
    if not rows:
        raise UserError(f"--sets-of {path} has no rows; give records of `bench.studies.selection_study`")
    if other := next((row.model for row in rows if row.model != name), None):
        raise UserError(
            f"--sets-of {path} has rows of {other}, not of {name}; give records of {name}, or --name {other}"
        )
    sets = {row.row.dropped for row in rows}
    if (last := max((block for one in sets for block in one), default=0)) >= num_blocks:
        raise UserError(
            f"--sets-of {path} drops block {last}, but {name} has blocks 0..{num_blocks - 1}; give its own records"
        )
    return sorted({(), *sets}, key=lambda one: (len(one), one))


def settle(options: argparse.Namespace) -> None:
    """Give options their defaults. Raises UserError for one of the other kind of measurement, which would not count."""
    measured, other = ("--last-words", OF_TEXT) if options.last_words else ("--text", OF_LAST_WORDS)
    if given := next((name for name in other if getattr(options, name) is not None), None):
        raise UserError(f"--{given} does not go with {measured}; leave it out")
    for name, default in {**OF_TEXT, **OF_LAST_WORDS}.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    if options.items < 1:
        raise UserError(f"--items must be 1 or more, got {options.items}")
    if options.window < LEAST_WINDOW:
        raise UserError(f"--window must be at least {LEAST_WINDOW}, got {options.window}")


def check_dtype(path: Path, known: Sequence[SetLoss | LastWords], dtype: str) -> None:
    """Refuse to go on in a dtype that no row has. Raises UserError."""
    there = sorted({row.dtype for row in known})
    if known and dtype not in there:
        raise UserError(
            f"{path} has rows in {' and '.join(there)}, not in {dtype}; give --dtype {there[0]}, or another file"
        )


def measure_last_words(
    model: BlockModel, name: str, tokenizer: Any, sets: Sequence[Dropped], options: argparse.Namespace
) -> None:
    """Count the last words that each set foretells, and append what is missing to the records."""
    items = Items(options.last_words, tokenizer, options.items)
    known = read_last_words(options.output)
    if other := next((row for row in known if (row.model, row.items_sha256) != (name, items.digest)), None):
        raise UserError(f"{options.output} has rows of {other.model} on other items; give another file")
    check_dtype(options.output, known, options.dtype)
    left = [one for one in sets if one not in {row.dropped for row in known}]
    for start in range(0, len(left), SETS_AT_ONCE):
        some = left[start : start + SETS_AT_ONCE]
        for dropped, foretold in zip(some, items.foretold(model, some), strict=True):
            row = LastWords(
                model=name,
                text=options.last_words.name,
                items_sha256=items.digest,
                items=len(items.rows),
                dtype=options.dtype,
                dropped=dropped,
                foretold=foretold,
            )
            append_line(options.output, row.model_dump_json())
            print(f"without {list(dropped)}: {foretold} of {row.items}", file=sys.stderr, flush=True)


def measure_losses(
    model: BlockModel, name: str, tokenizer: Any, sets: Sequence[Dropped], options: argparse.Namespace
) -> None:
    """Measure the loss of each set on the text, and append what is missing to the records."""
    windows = load_calibration(
        options.text,
        tokenizer,
        window_tokens=options.window,
        scoring_tokens=options.tokens,
        ranking_tokens=1,
        held_out_tokens=1,
        seed=TEXT_SEED,
        model=model.model,
        scattered=True,
    ).scoring.tokens
    first = 0
    if options.recall:
        bos, length = begins_with_bos(tokenizer), windows.shape[1]
        windows, first = repeating(windows, 1 / 2, bos=bos), length - (length - bos) // 2
    digest = tokens_digest(windows)
    known = read_losses(options.output)
    if other := next((row for row in known if (row.model, row.text_sha256) != (name, digest)), None):
        raise UserError(f"{options.output} has rows of {other.model} on other text; give another file")
    if other := next((row for row in known if row.window_tokens != options.window), None):  # no digest tells it
        raise UserError(
            f"{options.output} has rows in windows of {other.window_tokens}, not of {options.window}; "
            f"give --window {other.window_tokens}, or another file"
        )
    check_dtype(options.output, known, options.dtype)
    measured = {row.dropped for row in known}
    for dropped, ce_nats in losses(model, windows, [one for one in sets if one not in measured], first):
        if not math.isfinite(ce_nats):
            raise NotFiniteError(
                f"{name} without blocks {list(dropped)} gives losses that are not finite; leave that set out"
            )
        row = SetLoss(
            model=name,
            text=Path(options.text).name,
            text_sha256=digest,
            tokens=windows.numel(),
            window_tokens=options.window,
            recall=options.recall,
            dtype=options.dtype,
            dropped=dropped,
            ce_nats=ce_nats,
        )
        append_line(options.output, row.model_dump_json())
        print(f"without {list(dropped)}: perplexity {row.perplexity:.2f}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", help="of the model in the records; default: its folder's")
    measured_on = parser.add_mutually_exclusive_group(required=True)
    measured_on.add_argument("--text")
    measured_on.add_argument("--last-words", type=Path, metavar="FILE", help="JSON lines of context and continuation")
    parser.add_argument("--items", type=int, help="of --last-words; default: 200")
    parser.add_argument(
        "--recall",
        action="store_true",
        default=None,
        help="of --text: repeat each window's first half, and measure that",
    )
    without = parser.add_mutually_exclusive_group()
    without.add_argument("--sets-of", type=Path, metavar="FILE", help="records of `bench.studies.selection_study`")
    without.add_argument("--drop", action="append", help="blocks, as 3,5-7; default: the dense model and each block")
    parser.add_argument("--tokens", type=int, help="of --text; default: 2,048")
    parser.add_argument("--window", type=int, help="of --text; default: 512")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()

    def run() -> None:
        settle(options)
        folder = open_model(options.model)
        name = options.name or folder.path.resolve().name
        sets = wanted_sets(options, name, folder.num_blocks)
        model = load_on(folder, options.device, options.dtype)
        if options.last_words:
            measure_last_words(model, name, folder.tokenizer, sets, options)
        else:
            measure_losses(model, name, folder.tokenizer, sets, options)

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
