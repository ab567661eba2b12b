"""Measure the loss of a model without each of some sets of blocks, and keep it: the ground under a score.

    python -m bench.studies.set_losses MODEL --text TEXT.txt --drop 9 --drop 13-18 -o OUT.jsonl

Each line of the records holds one set. A set that is there is not measured again, so a killed run goes on. Without
`--drop` the dense model and each single block are measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mi_prun.artefact import Record
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import append_line
from mi_prun.json_lines import read_whole_lines
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.plan.ratio import parse_blocks
from mi_prun.quality.evaluator import Dropped, Evaluator
from mi_prun.text.calibration import load_calibration, tokens_digest

TEXT_SEED = 10_000
BATCH_TOKENS = 2_048
SETS_AT_ONCE = 6
ROWS = 128  # of logits at a time


class SetLoss(Record):
    """The cross-entropy of a set, nats a token. text_sha256: of the token ids, as `tokens_digest` gives it."""

    model: str
    text: str
    text_sha256: str
    tokens: int
    window_tokens: int
    dtype: str
    dropped: Dropped
    ce_nats: float

    @property
    def perplexity(self) -> float:
        """Return the perplexity; infinite where no float holds it."""
        return math.exp(self.ce_nats) if self.ce_nats < 700 else math.inf


def read_losses(path: Path) -> list[SetLoss]:
    """Read the records; none where there is no file."""
    return [SetLoss.model_validate_json(line) for line in read_whole_lines(path)]


@torch.inference_mode()
def losses(model: BlockModel, windows: Tensor, sets: Sequence[Dropped]) -> Iterator[tuple[Dropped, float]]:
    """Yield each set with its mean cross-entropy over the predicted tokens, a few sets at a time."""
    evaluator = Evaluator(model, windows, batch_tokens=BATCH_TOKENS)
    for start in range(0, len(sets), SETS_AT_ONCE):
        some = sets[start : start + SETS_AT_ONCE]
        sums = [0.0] * len(some)
        for tokens in torch.split(windows, evaluator.batch):
            targets = tokens[:, 1:].flatten().to(model.device)
            for number, final in enumerate(evaluator.final_states(tokens, some)):
                states = final[:, :-1].flatten(0, 1)
                for rows in torch.split(torch.arange(len(targets)), ROWS):
                    logits = model.logits(states[rows, None])[:, 0].float()
                    sums[number] += float(cross_entropy(logits, targets[rows], reduction="sum"))
        count = windows.shape[0] * (windows.shape[1] - 1)
        yield from zip(some, (total / count for total in sums), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", help="of the model in the records; default: its folder's")
    parser.add_argument("--text", required=True)
    parser.add_argument("--drop", action="append", help="blocks, as 3,5-7; default: the dense model and each block")
    parser.add_argument("--tokens", type=int, default=2_048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()

    def run() -> None:
        folder = open_model(options.model)
        model = load_on(folder, options.device, options.dtype)
        windows = load_calibration(
            options.text,
            folder.tokenizer,
            window_tokens=options.window,
            scoring_tokens=options.tokens,
            ranking_tokens=1,
            held_out_tokens=1,
            seed=TEXT_SEED,
            model=model.model,
            scattered=True,
        ).scoring.tokens
        digest, name = tokens_digest(windows), options.name or folder.path.resolve().name
        known = read_losses(options.output)
        if other := next((row for row in known if (row.model, row.text_sha256) != (name, digest)), None):
            raise UserError(f"{options.output} has rows of {other.model} on other text; give another file")
        wanted = [parse_blocks(word, folder.num_blocks, "--drop") for word in options.drop or []]
        sets = wanted or [(), *((block,) for block in range(folder.num_blocks))]
        measured = {row.dropped for row in known}
        for dropped, ce_nats in losses(model, windows, [one for one in sets if one not in measured]):
            row = SetLoss(
                model=name,
                text=Path(options.text).name,
                text_sha256=digest,
                tokens=windows.numel(),
                window_tokens=options.window,
                dtype=options.dtype,
                dropped=dropped,
                ce_nats=ce_nats,
            )
            append_line(options.output, row.model_dump_json())
            print(f"without {list(dropped)}: perplexity {row.perplexity:.2f}", file=sys.stderr, flush=True)

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
