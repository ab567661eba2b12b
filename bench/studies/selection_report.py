"""Turn the study's records (`bench.studies.selection_study`) into one Markdown page.

    python -m bench.studies.selection_report bench/published/selection -o docs/explanation/selection-study.md

What a ratio, a rank and a spread are, `bench.studies.selection_group` says.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.studies.selection_group import Group, Texts, by_model, mean_of_numbers
from bench.studies.selection_study import Confirmed, StudyRow, read_confirmed, read_study
from mi_prun.checkpoint.card import table
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import write_text

PICTURES = "selection-study"  # folder beside the page
NEAR = 1e-3  # of a ratio over 1


def page(groups: Sequence[Group]) -> str:
    """Return the page."""
    parts = [
        "# The selection study",
        "Made by `python -m bench.studies.selection_report`; do not edit. The records and the command that makes them "
        "are in `bench/published/selection/`. What follows from them: [choosing the blocks](selection.md).",
        f"Made on {_machines(groups)}.",
        f"- **Seeds.** Each of {len({row.seed for row in groups[0].rows})} seeds has a text of its own to calibrate "
        "on.\n"
        "- **Perplexity** is measured on text that no choice has seen. Where that is confirming text, the optimum was "
        "not found on it either.\n"
        "- **`NAME:N`** compares N sets of blocks by their measured loss.",
        "## All together",
        "Over all models, texts, k and seeds.",
        "**Behind.** Methods are compared seed by seed, because the same seed is the same calibration text. Where "
        "records were made apart it may be another one; their README says so. A method is behind another in two cases: "
        "it is worse on every seed, or the mean of the difference is more than its standard deviation over seeds. A "
        "method that is worse on one seed and tied on the others is behind nobody.",
        _columns(groups),
        _together(groups),
    ]
    for texts in by_model(groups):
        parts += [
            f"## {texts.model} ({texts.num_blocks} blocks): forward passes and the texts",
            "Passes over the ranking text, by k, the analysis included. Means over seeds and the texts "
            f"{', '.join(group.text for group in texts.groups)}.",
            _costs(texts),
        ]
    for group in groups:
        rows = group.rows
        parts += [
            f"## {group.model} ({group.num_blocks} blocks), {group.text}",
            f"- Dense perplexity: {group.dense_perplexity:.2f} on {group.tokens:,} tokens"
            + (" of confirming text" if group.confirmed else "")
            + f"{_in_part(group.confirmed)}.\n"
            f"- Ranking text: {rows[0].calibration_tokens:,} tokens, {_scored(rows):,} for the one pass, in windows of "
            f"{rows[0].window_tokens}.\n"
            "- Cells: mean ratio to the optimum over seeds ± standard deviation; rank in brackets."
            + ("" if all(group.reference(k)[1] for k in group.ks) else " k*: to the best set known."),
            f"![perplexity over dense against the share of blocks dropped]({PICTURES}/{group.picture_name})",
            _one(group),
        ]
    return "\n\n".join(parts) + "\n"


def _columns(groups: Sequence[Group]) -> str:
    """Say what each column of the first table is."""
    columns = {
        "cases": "combinations of model, text and k that the method was tried at.",
        "first": "share of the cases where the method is behind no other.",
        "first within error": "the same, where a difference within the standard error of measuring it does not count."
        + _measured(groups),
        "mean rank": "rank of the method among all, mean over the cases.",
        "near": "share of the single choices within .1 % of the optimum. Where the optimum is not known, of the best "
        "set known.",
        "mean ratio, 95th percentile, worst": "perplexity over the optimum's, over the single choices, where the "
        "optimum is known.",
        "worst mean over seeds": "the same ratio, averaged over the seeds of a case first.",
        "Jaccard, seeds": "how alike the dropped sets are, over pairs of seeds of a text.",
        "Jaccard, texts": "how alike they are over pairs of texts of a model, at the same seed.",
        "spread over texts": "standard deviation of the mean ratio over the texts of a model.",
        "passes / greedy": "forward passes over the ranking text at k = L/4, the analysis included, as a share of "
        "greedy-loss's.",
    }
    return "\n".join(f"- **{name}**: {meaning}" for name, meaning in columns.items())


def _measured(groups: Sequence[Group]) -> str:
    """Say for which texts the error of measuring is known."""
    known = [f"{group.model} on {group.text}" for group in groups if group.confirmed and group.confirmed.error_nats]
    if len(known) == len(groups):
        return ""
    return f" That error is known for {', '.join(known) or 'none'}; elsewhere it is taken as 0."


def _in_part(confirmed: Confirmed | None) -> str:
    """Say which sets were measured on less of the text."""
    if confirmed is None or not confirmed.in_part:
        return ""
    return (
        f" ({len(confirmed.in_part)} sets were clearly behind on the first {max(confirmed.in_part.values()):,} and "
        "were measured on those only)"
    )


def _scored(rows: Sequence[StudyRow]) -> int:
    """Return the tokens of the one pass."""
    return round(max(row.row.analysis_passes for row in rows) * rows[0].calibration_tokens)


def _machines(groups: Sequence[Group]) -> str:
    """Say where the rows come from, the most frequent machine first."""
    counts = Counter(
        f"{row.machine.gpu or f'{row.machine.cpu}, {row.machine.cores} cores'} (torch {row.versions['torch']}, "
        f"transformers {row.versions['transformers']})"
        for group in groups
        for row in group.rows
    )
    return "; ".join(f"{name}: {count:,} choices" for name, count in counts.most_common())


def _together(groups: Sequence[Group]) -> str:
    rows = []
    models = by_model(groups)
    for label in dict.fromkeys(label for group in groups for label in group.labels):
        own = [group for group in groups if label in group.labels]  # not every estimator was tried on every text
        cases = [(group, k) for group in own for k in group.ks_of(label)]
        ranks = [group.rank(label, k) for group, k in cases]
        first = [group.first(label, k) for group, k in cases]
        every = [ratio for group, k in cases for ratio in group.ratios(label, k)]
        known = [ratio for group, k in cases if group.reference(k)[1] for ratio in group.ratios(label, k)]
        means = [group.mean(label, k) for group, k in cases if group.reference(k)[1]]
        rows.append(
            (
                sum(rank > 1 for rank in ranks) / len(ranks),
                statistics.mean(known) if known else math.inf,
                (
                    label,
                    str(len(cases)),
                    f"{sum(rank == 1 for rank in ranks) / len(ranks):.0%}",
                    f"{sum(first) / len(first):.0%}",
                    f"{statistics.mean(ranks):.1f}",
                    f"{sum(ratio <= 1 + NEAR for ratio in every) / len(every):.0%}",
                    _figure(mean_of_numbers(known), ".3f"),
                    _figure(_percentile(known), ".3f"),
                    _figure(max(means, default=math.nan), ".3f"),
                    _figure(max(known, default=math.nan), ".3f"),
                    _figure(mean_of_numbers(group.jaccard(label) for group in own), ".2f"),
                    _figure(mean_of_numbers(texts.jaccard(label) for texts in models), ".2f"),
                    _figure(mean_of_numbers(texts.spread(label) for texts in models), ".3f"),
                    _per_size(own, partial(_share, label=label)),
                ),
            )
        )
    header = (
        "method", "cases", "first", "first within error", "mean rank", "near", "mean ratio", "95th percentile",
        "worst mean over seeds", "worst", "Jaccard, seeds", "Jaccard, texts", "spread over texts", "passes / greedy",
    )  # fmt: skip
    return table(header, [row for _, _, row in sorted(rows)])


def _percentile(values: Sequence[float]) -> float:
    """Return the 95th percentile. It is no more than the largest value, which a few values would be led beyond."""
    if len(values) < 2:
        return max(values, default=math.nan)
    return min(max(values), statistics.quantiles(values, n=20)[-1])


def _figure(value: float, spec: str) -> str:
    return "-" if math.isnan(value) else f"{value:{spec}}"


def _costs(texts: Texts) -> str:
    def line(label: str) -> tuple[str, ...]:
        passes = [_figure(texts.passes(label, k), ".2f") for k in texts.ks]
        return label, *passes, _figure(texts.jaccard(label), ".2f"), _figure(texts.spread(label), ".3f")

    order = sorted(texts.labels, key=lambda label: mean_of_numbers(texts.passes(label, k) for k in texts.ks))
    header = ("method", *(f"k={k}" for k in texts.ks), "Jaccard over texts", "spread over texts")
    return table(header, [line(label) for label in order])


def _per_size(groups: Sequence[Group], figure: Callable[[Group], float]) -> str:
    """Return a figure by number of blocks: its mean over the groups of that size."""
    sizes = sorted({group.num_blocks for group in groups})
    means = (mean_of_numbers(figure(group) for group in groups if group.num_blocks == size) for size in sizes)
    return ", ".join(f"{_figure(mean, '.2f')} (L={size})" for size, mean in zip(sizes, means, strict=True))


def _share(group: Group, *, label: str) -> float:
    k = min(max(1, round(group.num_blocks / 4)), group.ks_of(label)[-1])
    if not group.cells.get(("greedy-loss:0", k)):
        return math.nan
    return group.passes(label, k) / group.passes("greedy-loss:0", k)


def _one(group: Group) -> str:
    def cell(label: str, k: int) -> str:
        if label not in group.at(k):
            return "-"
        return f"{group.mean(label, k):.3f} ± {group.spread(label, k):.3f} ({group.rank(label, k)})"

    order = sorted(group.labels, key=lambda label: mean_of_numbers(group.mean(label, k) for k in group.ks_of(label)))
    rows = [(label, *(cell(label, k) for k in group.ks), _figure(group.jaccard(label), ".2f")) for label in order]
    heads = (f"k={k}" + ("" if group.reference(k)[1] else "*") for k in group.ks)
    return table(("method", *heads, "Jaccard"), rows)


def read_groups(folder: Path) -> list[Group]:
    """Read the groups of a folder, the smallest models first. Raises UserError where there is no record."""
    records = [(rows, read_confirmed(path)) for path in sorted(folder.glob("*.jsonl")) if (rows := read_study(path))]
    if not records:
        raise UserError(f"{folder} has no records; make some with `python -m bench.studies.selection_study`")
    return sorted(
        (Group(rows, confirmed) for rows, confirmed in records),
        key=lambda group: (group.num_blocks, group.model, group.text),
    )


def report_options(description: str | None) -> argparse.Namespace:
    """Parse the folder of results and the page to write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = report_options(__doc__)

    def write() -> None:
        groups = read_groups(options.results)
        pictures = options.output.parent / PICTURES
        pictures.mkdir(parents=True, exist_ok=True)
        for group in groups:
            write_text(pictures / group.picture_name, group.picture())
        write_text(options.output, page(groups))

    sys.exit(run_command(write))


if __name__ == "__main__":
    main()
