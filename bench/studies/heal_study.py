"""What healing gives, by method and length: perplexity on texts that were neither healed on nor looked at by the gate.

    python -m bench.studies.heal_study MODEL --drop 13-18 --text wiki.txt.xz --text books.txt.xz \\
        --judge wiki.test.raw --judge other_books.txt --case fit --case lora:100k --case all:100k -o heal.jsonl

A case is METHOD[:LENGTH], METHOD one of fit, lora, all, or lora-alone and all-alone (without the closed form), LENGTH
tokens (100k) or a time (10min). Each case is one line; those that the file has already are left out, so an interrupted
study goes on. Lines of another model or of other judged text do not count there, nor do those that say neither. The
healing itself is `mi_prun.recovery`'s; a healing that is no better is a line without figures. At the end the file is
printed as a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.records.machine import commit, this_machine, versions
from mi_prun.checkpoint.card import table
from mi_prun.checkpoint.manifest import is_pruned
from mi_prun.console import progress, run_command, say
from mi_prun.errors import UserError
from mi_prun.files import append_line
from mi_prun.json_lines import parse_json, read_whole_lines
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.plan.ratio import parse_blocks
from mi_prun.quality.evaluator import Evaluator
from mi_prun.recovery.amount import parse_heal
from mi_prun.recovery.heal import check_settings, heal
from mi_prun.recovery.judge import NoBetterError
from mi_prun.settings import HealSettings
from mi_prun.text.calibration import load_calibration, tokens_digest

ALONE = "-alone"
JUDGED_TOKENS = 1_024  # at once
FIELDS = {"key", "case", "model", "dropped", "unhealed"}  # of each line


def settings_of(case: str, base: HealSettings) -> HealSettings:
    """The settings of a case, METHOD[:LENGTH]."""
    method, _, length = case.partition(":")
    train = method.removesuffix(ALONE)
    if method == "fit" and not length:
        return parse_heal("fit", base)
    if train not in ("lora", "all") or not length:
        raise UserError(
            f"--case must be fit, or lora, all, lora{ALONE}, all{ALONE} with a length (lora:100k), got {case!r}"
        )
    return parse_heal(length, replace(base, train=train, fit=not method.endswith(ALONE)))


class JudgedModel:
    """Perplexity of a folder on the texts to judge by, cut once."""

    def __init__(
        self, dense: ModelFolder, texts: Sequence[str], tokens: int, window: int, device: str | None = None
    ) -> None:
        self.device = device
        tokenizer = dense.tokenizer
        names = [Path(text).name for text in texts]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"two texts to judge by are called {twice}: records go by the name, so rename one")
        self.windows = {
            Path(text).name: load_calibration(
                text, tokenizer, window_tokens=window, scoring_tokens=tokens, ranking_tokens=window,
                held_out_tokens=window, seed=0,
            ).scoring.tokens
            for text in texts
        }  # fmt: skip

    @property
    def digests(self) -> dict[str, list[int | str]]:
        """Return for each text the tokens of a window and the digest of all windows: a list, as JSON gives it back."""
        return {name: [windows.shape[1], tokens_digest(windows)] for name, windows in self.windows.items()}

    def log_perplexities(self, folder: ModelFolder, dropped: tuple[int, ...] = ()) -> dict[str, float]:
        """Return log-perplexities by text, in nats."""
        model = load_on(folder, self.device)
        with progress("judging", sum(windows.numel() for windows in self.windows.values()), "tokens") as advance:
            return {
                name: Evaluator(model, windows, batch_tokens=JUDGED_TOKENS).measure([dropped], advance)[0].ce_nats
                for name, windows in self.windows.items()
            }


def figures(dense: dict[str, float], pruned: dict[str, float], healed: dict[str, float]) -> dict[str, Any]:
    """Perplexities by text, and the share of the gap in log-perplexity that was closed; None where there is no gap."""
    return {
        name: {
            "dense": round(math.exp(dense[name]), 3),
            "pruned": round(math.exp(pruned[name]), 3),
            "healed": round(math.exp(healed[name]), 3),
            "gap_closed": round((pruned[name] - healed[name]) / gap, 4)
            if (gap := pruned[name] - dense[name])
            else None,
        }
        for name in dense
    }


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a study; none where there is no file. Raises UserError for one that is no JSON object."""
    records = []
    for number, line in enumerate(read_whole_lines(path), 1):
        record = parse_json(line, f"{path}, line {number}")
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} is no JSON object; move the file away")
        records.append(record)
    return records


def healed_table(records: Sequence[dict[str, Any]]) -> str:
    """Write the healed cases as a Markdown table: on each text the perplexities, and the share of the gap closed."""
    healed = [record for record in records if "judged" in record]
    texts = list(dict.fromkeys(name for record in healed for name in record["judged"]))
    return table(
        ("model", "dropped", "healed by", "tokens trained on", "seconds", *texts),
        [
            (
                record["model"],
                said_blocks(record["dropped"]),
                record["healing"]["method"],
                f"{record['healing']['tokens']:,}",
                f"{record['healing']['seconds']:.0f}",
                *(cell(record["judged"].get(text)) for text in texts),
            )
            for record in healed
        ],
    )


def said_blocks(dropped: Sequence[int]) -> str:
    """Say blocks for a heading or a cell."""
    return ", ".join(map(str, dropped))


def cell(judged: Mapping[str, float | None] | None) -> str:
    """Write the figures of one text; a dash where it was not measured, or where there was no gap to close."""
    if judged is None:
        return "-"
    dense, pruned, healed, closed = (judged[name] for name in ("dense", "pruned", "healed", "gap_closed"))
    return f"{dense:.1f}; {pruned:.1f}; **{healed:.1f}** ({'-' if closed is None else f'{closed:.0%}'})"


def study(options: argparse.Namespace) -> None:
    """Run the cases that the file lacks."""
    folder = open_model(options.model)
    identity = folder.identity
    dropped = parse_blocks(options.drop, identity.num_blocks)
    plan = Plan(dense=identity, dropped=dropped, kept=kept_blocks(identity.num_blocks, dropped), method="by hand")
    base = HealSettings(sources=tuple(options.text), seed=options.seed, device=options.device)
    base = replace(
        base, rank=options.rank, learning_rate=options.learning_rate, batch_tokens=options.batch_tokens,
        forward_tokens=min(options.batch_tokens or base.forward_tokens, base.forward_tokens),
        window_tokens=options.window,
        train_dtype=options.train_dtype,
    )  # fmt: skip
    cases = {case: settings_of(case, base) for case in options.case}
    for settings in cases.values():
        check_settings(settings)
    names = {"sources": [Path(text).name for text in options.text]}  # a record says nothing of its machine's folders
    keys = {case: f"{case} {list(dropped)} {json.dumps(asdict(settings) | names)}" for case, settings in cases.items()}
    records = read_records(options.output)
    if other := next((number for number, record in enumerate(records, 1) if not record.keys() >= FIELDS), None):
        raise UserError(f"{options.output}, line {other} is not of this study; give another file")
    judged = JudgedModel(folder, options.judge, options.judge_tokens, options.window, options.device)
    judging = {"weights_sha256": identity.weights_sha256, "judged_on": judged.digests}
    alike = [record for record in records if judging.items() <= record.items()]
    done = {record["key"] for record in alike}
    known = next((record["unhealed"] for record in alike if record["dropped"] == list(dropped)), None)
    dense, pruned = known or [judged.log_perplexities(folder, blocks) for blocks in ((), dropped)]
    for case, settings in cases.items():
        if keys[case] in done:
            continue
        record: dict[str, Any] = {"key": keys[case], "case": case, "model": folder.path.name, "dropped": list(dropped)}
        record |= {**judging, "unhealed": [dense, pruned]}
        with tempfile.TemporaryDirectory() as place:
            kept = options.keep or Path(place)
            kept.mkdir(parents=True, exist_ok=True)
            name = f"{case.replace(':', '-')}-without-{'-'.join(map(str, dropped))}-seed-{options.seed}"
            before, out = os.times().user, kept / name
            try:
                # A folder that is there was killed before its line was written.
                manifest = heal(folder, plan, out, settings, force=is_pruned(out))
            except NoBetterError as error:
                record["refused"] = str(error)
            else:
                healing = manifest.healing
                record["user_seconds"] = round(os.times().user - before, 1)
                record["healing"] = None if healing is None else healing.model_dump()
                healed = judged.log_perplexities(open_model(out))
                record["judged"] = figures(dense, pruned, healed)
        record |= {"machine": this_machine().model_dump(), "versions": versions(), "commit": commit()}
        append_line(options.output, json.dumps(record))
        say(f"{case}: {json.dumps(record.get('judged') or record.get('refused'))}")
    print(healed_table(read_records(options.output)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--drop", required=True, help="blocks to drop, of `mi-prun plan`")
    parser.add_argument("--text", action="append", required=True, help="to heal on, of `mi-prun heal --calibration`")
    parser.add_argument("--judge", action="append", required=True, help="a text file to measure perplexity on")
    parser.add_argument("--judge-tokens", type=int, default=8_192)
    parser.add_argument("--case", action="append", required=True, help="METHOD[:LENGTH]")
    parser.add_argument("--window", type=int, default=HealSettings.window_tokens)
    parser.add_argument("--rank", type=int, default=HealSettings.rank)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--batch-tokens", type=int, help="of `mi-prun heal`")
    parser.add_argument("--train-dtype", help="of `mi-prun heal`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where healed folders stay, to run tasks on")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    sys.exit(run_command(lambda: study(options)))


if __name__ == "__main__":
    main()
