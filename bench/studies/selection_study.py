"""Run the study behind the default selection: every method at every k up to L/2, beside the optimum.

    python -m bench.studies.selection_study MODEL --text books=books.txt --text self -o bench/published/selection

A large model on a CPU has no optimum: `--most-sets 0`. What measures ranks it on as much text as `mi-prun plan` does.
`bench.studies.real_report` reads its records.

For each text, disjoint excerpts make one evaluation text and one calibration text a seed. `self` is sampled from the
model. `--text NAME=FILE,FILE` is one text of several kinds, each in equal shares. All choices are measured on the
evaluation text. The optimum on it comes from all C(L, k) sets, where they are no more than 5,000: each is measured on a
part of the text, and those that are not worse than the best by more than three standard errors of the paired difference
are measured on more of it, up to the whole.

The best of a thousand sets on some text is also the luckiest on it. `--confirm TOKENS` measures every choice and every
optimum once more, on text that neither chose nor found them; those clearly behind on an eighth of it are measured no
further. `--pair 2,3,7 2,3,9` with it measures these two sets alone, and prints their difference and its standard error.

Records are JSON lines, appended as they are made; a run that was killed goes on from them. `python -m
bench.studies.selection_report` reads them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from bench.records.machine import commit, this_machine, versions
from bench.records.schema import Machine
from mi_prun.analysis.analysis import Analysis, read_analysis
from mi_prun.analysis.analyze import analyze, check_settings
from mi_prun.artefact import Record
from mi_prun.comparison.comparison import compare, parse_methods
from mi_prun.comparison.comparison_row import MethodSpec, Row
from mi_prun.console import progress, run_command
from mi_prun.errors import UserError, first_line
from mi_prun.files import append_line, read_json_object, write_text
from mi_prun.json_lines import Line, read_lines, read_whole_lines
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.plan.ratio import parse_blocks
from mi_prun.planning.planning import make_context
from mi_prun.quality.evaluator import Dropped, Evaluator
from mi_prun.selection.baselines import EXHAUSTIVE_LIMIT, all_sets
from mi_prun.selection.context import CRITERIA, Context
from mi_prun.selection.hybrid import PROPOSERS
from mi_prun.selection.methods import choose
from mi_prun.selection.race import LEAST_WINDOWS, clearly_behind
from mi_prun.settings import SELF, AnalyzeSettings, PlanSettings
from mi_prun.text.calibration import CalibrationDescription, load_mixture, tokens_digest
from mi_prun.text.recall import check_recall
from mi_prun.text.text_source import text_source

METHODS = (
    "hybrid,mi-prun:0,mi-prun:24,mi-optimum,logit-gram,cbo,cbo-fisher,segment-loss,bi,angular,greedy-loss,"
    "tail,tail-but-last,random"
)
MI_METHODS = ("mi-prun", "mi-optimum")
EXCERPT_CHARACTERS = 3_000
BATCH_TOKENS = 1_024  # few, so that the progress line moves
TEXT_SEEDS = {"evaluation": 10_000, "confirming": 10_001}
ROLE_SHARES = (0.5, 0.1)  # of the excerpts, to confirm and to evaluate; the seeds share the rest
Role = Literal["evaluation", "confirming"] | int  # an int is a seed
CONFIRMING_SHARE = 1 / 8  # of the confirming text, for sets that are clearly behind by then
UNMEASURED = ("mi-prun", "mi-optimum", "bi", "angular", "tail", "tail-but-last", "random")  # without re-ranking
OPTIMUM_SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the evaluation text


class StudyRow(Record):
    """A choice, measured on the evaluation text.

    `row` holds the choice; its own figures are of the ranking's sibling text and are not read here. optimum_: the best
    set of as many blocks on the same evaluation text, where it is known.
    left_out: whose candidates `hybrid` went without (`hybrid.PROPOSERS`). recall, criterion: of `mi-prun plan`, where
    they were asked for. evaluation_sha256, calibration_sha256: of the token ids, as `tokens_digest` gives it; these,
    dtype and weights_sha256 (of `ModelIdentity`) are None in rows of a release that did not record them.
    """

    schema_version: Literal[1] = 1
    model: str
    text: str
    seed: int
    estimator: str = "gaussian"
    left_out: str | None = None
    recall: float | None = None
    criterion: str | None = None
    row: Row
    perplexity: float
    kl_nats_per_token: float
    dense_perplexity: float
    optimum_perplexity: float | None
    optimum_dropped: Dropped | None
    evaluation_tokens: int
    calibration_tokens: int
    ranked_tokens: int | None = None  # of them, what sets were compared on; older rows do not say
    window_tokens: int
    evaluation_sha256: str | None = None
    calibration_sha256: str | None = None
    dtype: str | None = None
    weights_sha256: str | None = None
    machine: Machine
    versions: dict[str, str]
    commit: str | None

    @property
    def label(self) -> str:
        """The method; where it looks at mutual information, with an estimator that is not `gaussian`, the first one."""
        named = self.row.method in MI_METHODS and self.estimator != "gaussian"
        return self.row.label + (f" {self.estimator}" if named else "") + self.variant

    @property
    def variant(self) -> str:
        """What was not as by default, in words."""
        criterion = "" if self.criterion is None else f" --criterion {self.criterion}"
        recall = "" if self.recall is None else f" --recall {self.recall:g}"
        return criterion + recall + (f" without {self.left_out}" if self.left_out else "")


class Confirmed(Record):
    """The perplexity of each set on the confirming text. Keys are the dropped blocks, 0-based; "" is the dense model.

    in_part: tokens of each set that was clearly behind on the first part of the text and was measured on no more. Its
    perplexity is that of the best set there, on the whole text, times their ratio on the part. error_nats: the standard
    error, over windows, of each set's difference a token from the best of as many blocks.
    """

    schema_version: Literal[1] = 1
    tokens: int
    window_tokens: int
    perplexity: dict[str, float]
    in_part: dict[str, int] = Field(default_factory=dict)
    error_nats: dict[str, float] = Field(default_factory=dict)
    machine: Machine
    versions: dict[str, str]
    commit: str | None


class Pair(Record):
    """Two sets on the confirming text.

    difference_nats: the first one's cross-entropy above the second's, a token. standard_error_nats: of that difference,
    over windows.
    """

    schema_version: Literal[1] = 1
    model: str
    text: str
    dropped: tuple[Dropped, Dropped]
    tokens: int
    window_tokens: int
    perplexity: tuple[float, float]
    difference_nats: float
    standard_error_nats: float
    machine: Machine
    versions: dict[str, str]
    commit: str | None


def key_of(dropped: Dropped) -> str:
    """Return the key of a set in a record: its blocks, with commas."""
    return ",".join(map(str, dropped))


def blocks_of(key: str) -> Dropped:
    """Return the blocks of a key."""
    return tuple(int(block) for block in key.split(",") if block)


class Study:
    """The study of one model on one text."""

    def __init__(
        self, folder: ModelFolder, name: str, text: str, sources: Sequence[str], options: argparse.Namespace
    ) -> None:
        self.folder, self.name, self.text, self.sources, self.options = folder, name, text, sources, options
        self.settings = AnalyzeSettings(
            sources=tuple(sources),
            scoring_tokens=options.tokens,
            ranking_tokens=options.ranking_tokens,
            held_out_tokens=1,
            window_tokens=options.window,
            estimator=options.estimator,
            device=options.device,
            dtype=options.dtype,
        )
        self.model: BlockModel = load_on(folder, options.device, options.dtype)
        self.path = Path(options.output) / f"{name}.{text}.jsonl"
        self.known = read_study(self.path)

    def run(self) -> None:
        """Choose by every method at every k and seed, and append what is missing to the records."""
        evaluation = Evaluator(self.model, self.evaluation_windows(), batch_tokens=BATCH_TOKENS)
        ks = range(self.options.least_blocks, self.options.most_blocks + 1)
        evaluated_on = {
            "evaluation_tokens": evaluation.predicted_tokens,
            "window_tokens": self.options.window,
            "evaluation_sha256": tokens_digest(evaluation.windows),
            "weights_sha256": self.folder.identity.weights_sha256,
        }
        self.check_alike(evaluated_on)
        optimum = self.optimum(evaluation, ks)
        dense = evaluation.measure([()])[0]
        for seed in range(self.options.seeds) if self.options.seed is None else [self.options.seed]:
            known = [row.row for row in self.known if row.seed == seed and self.is_alike(row)]
            made = {(row.label, len(row.dropped)) for row in known}
            specs = parse_methods(self.options.methods)
            if made >= {(spec.label, k) for spec in specs for k in ks}:
                continue
            settings = PlanSettings(seed=seed, device=self.options.device, criterion=self.options.criterion)
            if self.options.recall is not None:
                settings = replace(settings, recall=self.options.recall)
            context = make_context(self.analysis(seed), settings, lambda: self.model, self.folder)
            calibration = context.analysis.record.calibration
            calibrated_on = {
                "calibration_tokens": calibration.ranking_tokens,
                "calibration_sha256": calibration.fingerprint,
            }
            self.check_alike(calibrated_on, seed)
            measure_together(context, evaluation, [(s, k) for s in specs for k in ks if (s.label, k) not in made])

            def keep(
                row: Row,
                seed: int = seed,
                calibrated_on: dict[str, Any] = calibrated_on,
                there: set[tuple[str, int]] = made,
                ranked_tokens: int = context.analysis.ranking.size,
            ) -> None:
                if (row.label, len(row.dropped)) in there:  # of another machine's analysis: the same settings
                    return
                loss = evaluation.measure([row.dropped])[0]
                best = optimum.get(len(row.dropped))
                record = StudyRow(
                    model=self.name,
                    text=self.text,
                    seed=seed,
                    estimator=self.options.estimator,
                    left_out=self.options.leave_out,
                    recall=self.options.recall,
                    criterion=self.options.criterion,
                    row=row,
                    perplexity=math.exp(loss.ce_nats),
                    kl_nats_per_token=loss.kl_nats,
                    dense_perplexity=math.exp(dense.ce_nats),
                    optimum_perplexity=math.exp(evaluation.measure([best])[0].ce_nats) if best else None,
                    optimum_dropped=best,
                    **evaluated_on,
                    **calibrated_on,
                    ranked_tokens=ranked_tokens,
                    dtype=self.options.dtype,
                    machine=this_machine(),
                    versions=versions(),
                    commit=commit(),
                )
                append_line(self.path, record.model_dump_json())
                print(
                    f"{self.name} {self.text} seed {seed}: {row.label} k={len(row.dropped)} {list(row.dropped)} "
                    f"perplexity {record.perplexity:.2f}, optimum {record.optimum_perplexity or math.nan:.2f}",
                    file=sys.stderr,
                    flush=True,
                )

            compare(context, specs, list(ks), known=known, keep=keep)

    def is_alike(self, row: StudyRow) -> bool:
        """Return whether a row was made as this run makes rows."""
        asked = (self.options.estimator, self.options.leave_out, self.options.recall, self.options.criterion)
        return (row.estimator, row.left_out, row.recall, row.criterion) == asked

    def check_alike(self, asked: dict[str, Any], seed: int | None = None) -> None:
        """Refuse rows that were made with other settings: they are not rows of this study.

        asked: fields of a row. What a row does not say is not compared; nor is dtype: a study may go on in another.
        seed: whose rows are compared; None: all. Raises UserError.
        """
        for row in self.known:
            if seed not in (None, row.seed):
                continue
            made = {name: getattr(row, name) for name in asked if getattr(row, name) not in (None, asked[name])}
            if made:
                raise UserError(
                    f"{self.path} has rows of other settings ({_words(made)}, not "
                    f"{_words({name: asked[name] for name in made})}); give theirs, or another output folder"
                )

    def optimum(self, evaluation: Evaluator, ks: Iterable[int]) -> dict[int, Dropped]:
        """Return the best set of each k on the evaluation text; kept beside the records, as it takes the longest."""
        path = self.path.with_suffix(".optimum.json")
        text = tokens_digest(evaluation.windows)
        best: dict[int, Dropped] = {}
        counts: dict[int, list[int]] = {}
        if path.is_file():
            kept = read_json_object(path, f"no file {path}")
            if kept.get("text_sha256", text) != text:  # older files do not say it
                raise UserError(f"{path} is of another evaluation text; give its settings, or another output folder")
            try:
                best = {int(k): tuple(dropped) for k, dropped in kept["optimum"].items()}
                counts = {int(k): sets for k, sets in kept["sets_measured"].items()}
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} is no file of this study's optima ({error!r}); move it away") from error
        most = EXHAUSTIVE_LIMIT if self.options.most_sets is None else self.options.most_sets
        missing = [k for k in ks if k not in best and math.comb(self.model.num_blocks, k) <= most]
        for k in missing:
            best[k], counts[k] = best_of_all(evaluation, all_sets(self.model.num_blocks, k))
            print(f"{self.name} {self.text}: optimum of {k}: {best[k]}", file=sys.stderr, flush=True)
        if missing:
            made = {"optimum": best, "sets_measured": counts, "shares": OPTIMUM_SHARES, "text_sha256": text}
            write_text(path, json.dumps(made) + "\n")
        return best

    def confirm(self, tokens: int) -> None:
        """Measure what was chosen and found on about `tokens` tokens of text of their own."""
        rows = read_study(self.path)
        sets = {(), *(row.row.dropped for row in rows), *(row.optimum_dropped or () for row in rows)}
        evaluator = Evaluator(self.model, self.windows("confirming", tokens))
        known = self.confirmed(evaluator)
        left = sorted((dropped for dropped in sets if key_of(dropped) not in known.perplexity), key=len)
        with progress("confirming", len(left), "sets") as advance:
            for _, group in groupby(left, key=len):
                some = list(group)
                self.confirm_some(evaluator, some, known)
                advance(len(some))
                write_text(confirmed_path(self.path), known.model_dump_json(indent=1) + "\n")

    def pair(self, first: Dropped, second: Dropped, tokens: int) -> Pair:
        """Compare two sets on about `tokens` tokens of the confirming text."""
        evaluator = Evaluator(self.model, self.windows("confirming", tokens))
        with progress("confirming", 2 * evaluator.windows.numel(), "tokens") as advance:
            ce = evaluator.by_window([first, second], advance)[..., 1] / (evaluator.windows.shape[1] - 1)
        return Pair(
            model=self.name,
            text=self.text,
            dropped=(first, second),
            tokens=evaluator.predicted_tokens,
            window_tokens=self.options.window,
            perplexity=(math.exp(ce[0].mean()), math.exp(ce[1].mean())),
            difference_nats=float((ce[0] - ce[1]).mean()),
            standard_error_nats=max(errors(ce)),
            machine=this_machine(),
            versions=versions(),
            commit=commit(),
        )

    def confirm_some(self, evaluator: Evaluator, sets: Sequence[Dropped], known: Confirmed) -> None:
        """Measure sets of as many blocks: on the whole text only those that a part of it leaves in question."""
        whole = {key: value for key, value in known.perplexity.items() if key not in known.in_part}
        alike = [key for key in whole if len(blocks_of(key)) == len(sets[0])]
        compared = [*([blocks_of(min(alike, key=whole.__getitem__))] if alike else []), *sets]
        windows = min(len(evaluator.windows), max(LEAST_WINDOWS, round(CONFIRMING_SHARE * len(evaluator.windows))))
        length = evaluator.windows.shape[1] - 1
        part = evaluator.by_window(compared, windows=windows)[..., 1] / length
        behind = clearly_behind([part])
        left = [dropped for dropped, is_behind in zip(compared, behind, strict=True) if not is_behind]
        ce = evaluator.by_window(left)[..., 1] / length
        for dropped, own, error in zip(left, ce, errors(ce), strict=True):
            known.perplexity[key_of(dropped)] = math.exp(own.mean())
            known.error_nats[key_of(dropped)] = error
        first = int(part.sum(1).argmin())
        for dropped, own, error, is_behind in zip(compared, part, errors(part), behind, strict=True):
            if is_behind and dropped in sets:
                ratio = math.exp(own.mean() - part[first].mean())
                known.perplexity[key_of(dropped)] = known.perplexity[key_of(compared[first])] * ratio
                known.in_part[key_of(dropped)] = windows * length
                known.error_nats[key_of(dropped)] = error

    def confirmed(self, evaluator: Evaluator) -> Confirmed:
        """Return what was measured on this very text before; the dense perplexity tells whether it is the same.

        Raises UserError where it is not.
        """
        path = confirmed_path(self.path)
        new = Confirmed(
            tokens=evaluator.predicted_tokens,
            window_tokens=self.options.window,
            perplexity={},
            machine=this_machine(),
            versions=versions(),
            commit=commit(),
        )
        known = read_confirmed(self.path)
        if known is None:
            return new
        dense = math.exp(evaluator.measure([()])[0].ce_nats)
        if known.tokens != new.tokens or not math.isclose(known.perplexity.get("", math.nan), dense, rel_tol=1e-6):
            raise UserError(
                f"{path} is of another confirming text or model ({known.tokens} tokens, dense perplexity "
                f"{known.perplexity.get('', math.nan):.8g}, not {new.tokens} and {dense:.8g}); give its settings, "
                "or move it away"
            )
        update = {name: getattr(known, name) for name in ("perplexity", "in_part", "error_nats")}
        return new.model_copy(update=update)

    def evaluation_windows(self) -> Tensor:
        """Return the windows of the evaluation text."""
        return self.windows("evaluation", self.options.evaluation_tokens)

    def windows(self, role: Literal["evaluation", "confirming"], tokens: int) -> Tensor:
        """Return the windows of the text that plays that role."""
        with tempfile.TemporaryDirectory() as folder:
            calibration = load_mixture(
                self.excerpts(role, Path(folder)),
                self.folder.tokenizer,
                window_tokens=self.options.window,
                scoring_tokens=tokens,
                ranking_tokens=1,
                held_out_tokens=1,
                seed=TEXT_SEEDS[role],
                model=self.model.model,
                scattered=True,
            )
        check_enough(calibration.description)
        return calibration.scoring.tokens

    def analysis(self, seed: int) -> Analysis:
        """Analyse the calibration text of a seed."""
        with tempfile.TemporaryDirectory() as folder:
            settings = replace(self.settings, sources=self.excerpts(seed, Path(folder)), seed=seed)
            analyze(self.folder, Path(folder) / "analysis", settings, load=lambda: self.model)
            analysis = read_analysis(Path(folder) / "analysis")
        check_enough(analysis.record.calibration)
        return analysis

    def excerpts(self, role: Role, folder: Path) -> tuple[str, ...]:
        """Write text files of excerpts for a role: the evaluation, the confirmation or a seed. No two share one."""
        return tuple(self.excerpts_of(source, role, folder) for source in self.sources)

    def excerpts_of(self, source: str, role: Role, folder: Path) -> str:
        """Write one of these files."""
        if source == SELF:
            return SELF
        document = "\n".join(text_source(source).open())
        size = EXCERPT_CHARACTERS
        cells = np.random.default_rng(0).permutation(len(document) // size)
        confirming, evaluation, calibration = np.split(cells, [round(e * len(cells)) for e in np.cumsum(ROLE_SHARES)])
        parts = {"confirming": confirming, "evaluation": evaluation}
        chosen = parts[role] if isinstance(role, str) else np.array_split(calibration, self.options.seeds)[role]
        path = folder / f"{self.text if len(self.sources) == 1 else Path(source).stem}.txt"
        path.write_text("\n".join(document[i * size : (i + 1) * size] for i in sorted(chosen)))
        return str(path)


def measure_together(context: Context, evaluation: Evaluator, wanted: Iterable[tuple[MethodSpec, int]]) -> None:
    """Measure in one walk what the methods that measure nothing choose: sets that begin alike share their first states,
    and all share the dense model.
    """
    sets = {
        choose(context.fresh(), spec.name, k, 0).dropped
        for spec, k in wanted
        if spec.rerank == 0 and spec.name in UNMEASURED
    }
    if sets:
        tokens = evaluation.windows.numel() + context.held_out.windows.numel()
        with progress("measuring", len(sets) * tokens, "tokens x sets") as advance:
            evaluation.measure(sets, advance)
            context.held_out.measure([(), *sets], advance)


def check_enough(text: CalibrationDescription) -> None:
    """Refuse a text that is too short for its part. Raises UserError."""
    have = text.scoring_tokens + text.ranking_tokens + text.held_out_tokens
    if have < text.wanted_tokens:
        raise UserError(f"text {text.source} has {have:,} of {text.wanted_tokens:,} tokens for a part of the study")


def best_of_all(evaluator: Evaluator, sets: Sequence[Dropped]) -> tuple[Dropped, list[int]]:
    """Return the set of least cross-entropy, and how many sets were measured on each share of the windows."""
    left = list(sets)
    counts = []
    with progress("optimum", len(left), "sets") as advance:
        for share in OPTIMUM_SHARES:
            counts.append(len(left))
            windows = min(len(evaluator.windows), max(LEAST_WINDOWS, round(share * len(evaluator.windows))))
            ce = evaluator.by_window(left, windows=windows)[:, :, 1]
            best = int(ce.mean(1).argmin())
            if share < 1 and windows > 1:  # one window tells no error
                behind = clearly_behind([ce])
                advance(int(behind.sum()))
                left = [dropped for dropped, left_out in zip(left, behind, strict=True) if not left_out]
        advance(len(left))
    return left[best], counts


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{str(value)[:12]} {name.replace('_', ' ')}" for name, value in settings.items())


def read_rows(path: Path, kind: type[Line]) -> list[Line]:
    """Read the rows of one file; none where it is missing. Raises UserError for a damaged line, a cut one too."""
    read_whole_lines(path)  # a row would be appended to a line that is cut short
    return read_lines(path, kind)


def read_study(path: Path) -> list[StudyRow]:
    """Read the records of one file; none where it is missing."""
    return read_rows(path, StudyRow)


def errors(ce_nats: NDArray[np.float64]) -> list[float]:
    """Return the standard error of each set's difference from the best one. ce_nats: (sets, windows), a token's."""
    difference = ce_nats - ce_nats[ce_nats.mean(1).argmin()]
    standard_errors: list[float] = (difference.std(1, ddof=1) / math.sqrt(ce_nats.shape[1])).tolist()
    return standard_errors


def confirmed_path(records: Path) -> Path:
    """Return where the confirmed perplexities of a file of records lie."""
    return records.with_suffix(".confirmed.json")


def read_confirmed(records: Path) -> Confirmed | None:
    """Read what was measured on the confirming text; None where there is no file.

    Raises UserError for a damaged one.
    """
    path = confirmed_path(records)
    if not path.is_file():
        return None
    try:
        return Confirmed.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); move it away") from error


def settle(options: argparse.Namespace, num_blocks: int) -> None:
    """Give `--most-blocks` its default. Raises UserError for options that no study can be made with."""
    if options.pair and not options.confirm:
        raise UserError("--pair needs --confirm TOKENS: how much of the confirming text the two are compared on")
    for name in ("recall", "criterion", "leave_out"):
        if options.confirm and getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} does not go with --confirm, which chooses nothing; leave it out"
            )
    if options.seed is not None and not 0 <= options.seed < options.seeds:
        raise UserError(f"--seed must be in 0..{options.seeds - 1}, as --seeds is {options.seeds}, got {options.seed}")
    if options.recall is not None:
        check_recall(options.recall)
    check_settings(AnalyzeSettings(scoring_tokens=options.tokens, window_tokens=options.window))
    least, most = options.least_blocks, num_blocks // 2 if options.most_blocks is None else options.most_blocks
    if not 1 <= least <= most < num_blocks:
        raise UserError(
            f"--least-blocks to --most-blocks must be within 1..{num_blocks - 1} of {num_blocks} blocks, "
            f"got {least} to {most}"
        )
    options.most_blocks = most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", help="of the model in the records; default: its folder's")
    parser.add_argument("--text", action="append", required=True, help="NAME=FILE[,FILE...], or self")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--estimator", default=AnalyzeSettings.estimator)
    parser.add_argument("--leave-out", choices=[*PROPOSERS], help="of what `hybrid` has")
    parser.add_argument("--recall", type=float, help="of `mi-prun plan`; default: its default")
    parser.add_argument("--criterion", choices=CRITERIA, help="of `mi-prun plan`; default: its default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, help="this one of them alone, as a process of its own")
    parser.add_argument("--tokens", type=int, default=AnalyzeSettings.scoring_tokens, help="of `analyze`")
    parser.add_argument("--ranking-tokens", type=int, help="of `analyze`; default: as many as it takes")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--evaluation-tokens", type=int, default=8_192)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--least-blocks", type=int, default=1, help="the smallest k")
    parser.add_argument("--most-blocks", type=int, help="the largest k; default: half of the blocks")
    parser.add_argument("--most-sets", type=int, help="measure all sets up to so many for the optimum; default: 5,000")
    parser.add_argument("--confirm", type=int, metavar="TOKENS", help="measure the records' sets on other text instead")
    parser.add_argument("--pair", nargs=2, metavar="BLOCKS", help="with --confirm: compare these two sets alone")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()

    def run() -> None:
        folder = open_model(options.model)
        settle(options, folder.num_blocks)
        if options.leave_out:
            PROPOSERS.pop(options.leave_out)  # this process runs one study
        if options.threads:
            torch.set_num_threads(options.threads)
        Path(options.output).mkdir(parents=True, exist_ok=True)
        for text in options.text:
            name, _, sources = text.partition("=")
            study = Study(
                folder, options.name or folder.path.resolve().name, name, (sources or name).split(","), options
            )
            if options.confirm and options.pair:
                first, second = (parse_blocks(word, folder.num_blocks, "--pair") for word in options.pair)
                print(study.pair(first, second, options.confirm).model_dump_json())
            elif options.confirm:
                study.confirm(options.confirm)
            else:
                study.run()

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
