"""Reads the study's records (`bench.selection_study`) into one Markdown page.

    python -m bench.selection_report bench/results/selection -o docs/selection-study.md

Ratio: perplexity of the choice over that of the optimum on the same text, the confirming one where there is one; where
the optimum is not known, over the best set that any method chose there on any seed, and marked. Tied: within the spread
(standard deviation over seeds) of the best method at that k.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

from bench.selection_study import Confirmed, StudyRow, confirmed_path, key_of, read_study
from mi_prun.card import table
from mi_prun.comparison_plots import quality_svg
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import write_text

TIE = 1e-9
PICTURES = "selection-study"  # folder beside the page


class Group:
    """The rows of one model on one text."""

    def __init__(self, rows: Sequence[StudyRow], confirmed: Confirmed | None = None) -> None:
        self.rows = rows
        self.confirmed = confirmed
        self.model, self.text = rows[0].model, rows[0].text
        self.num_blocks = rows[0].row.num_blocks
        self.labels = list(dict.fromkeys(row.label for row in rows))
        self.cells: dict[tuple[str, int], list[StudyRow]] = defaultdict(list)
        for row in rows:
            self.cells[row.label, len(row.row.dropped)].append(row)
        # Where a run was stopped half way, only what all methods have.
        every = sorted({k for _, k in self.cells})
        self.ks = [k for k in every if all((label, k) in self.cells for label in self.labels)]

    def perplexity(self, row: StudyRow) -> float:
        return row.perplexity if self.confirmed is None else self.confirmed.perplexity[key_of(row.row.dropped)]

    @property
    def dense_perplexity(self) -> float:
        return self.rows[0].dense_perplexity if self.confirmed is None else self.confirmed.perplexity[""]

    @property
    def tokens(self) -> int:
        """Of the text that the figures are of."""
        return self.rows[0].evaluation_tokens if self.confirmed is None else self.confirmed.tokens

    def reference(self, k: int) -> tuple[float, bool]:
        """The perplexity that ratios are taken to, and whether it is the optimum."""
        rows = [row for label in self.labels for row in self.cells[label, k]]
        known = [
            row.optimum_perplexity if self.confirmed is None else self.confirmed.perplexity[key_of(row.optimum_dropped)]
            for row in rows
            if row.optimum_perplexity is not None and row.optimum_dropped is not None
        ]
        best = min(self.perplexity(row) for row in rows)
        # The optimum's race may lose to a set that it threw away by chance; never divide by the worse of the two.
        return (min(best, known[0]), True) if known else (best, False)

    def ratios(self, label: str, k: int) -> list[float]:
        reference = self.reference(k)[0]
        return [self.perplexity(row) / reference for row in self.cells[label, k]]

    def mean(self, label: str, k: int) -> float:
        return statistics.mean(self.ratios(label, k))

    def spread(self, label: str, k: int) -> float:
        values = self.ratios(label, k)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def rank(self, label: str, k: int) -> int:
        """1 for the first, and for all that are tied with it within the spread of the better one over seeds."""
        mine = self.mean(label, k)
        return 1 + sum(
            self.mean(other, k) + max(self.spread(other, k), self.spread(label, k), TIE) < mine
            for other in self.labels
            if other != label
        )

    def picture(self) -> str:
        """SVG: perplexity over dense against the share of blocks, a line for each method, means over seeds."""
        rows = []
        for label in self.labels:
            for k in self.ks:
                found = self.cells[label, k]
                if found[0].label != found[0].row.label:
                    continue  # another estimator: in the tables, too many lines for a picture
                mean = statistics.mean(self.perplexity(row) for row in found)
                update = {"perplexity": mean, "dense_perplexity": self.dense_perplexity}
                rows.append(found[0].row.model_copy(update=update))
        return quality_svg(rows)

    @property
    def picture_name(self) -> str:
        return f"{self.model}.{self.text}.svg"

    def jaccard(self, label: str) -> float:
        """Mean over k of the mean pairwise Jaccard index of the sets dropped over seeds."""
        values = []
        for k in self.ks:
            sets = [set(row.row.dropped) for row in self.cells[label, k]]
            values += [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
        return statistics.mean(values) if values else math.nan

    def passes(self, label: str, k: int) -> float:
        return statistics.mean(row.row.passes for row in self.cells[label, k])


def page(groups: Sequence[Group]) -> str:
    first = groups[0].rows[0]
    parts = [
        "# The selection study",
        "Made by `python -m bench.selection_report`; do not edit. The records and the command that makes them are in "
        "`bench/results/selection/`; what follows from them is in `selection.md`.",
        f"Machine: {first.machine.cpu}, {first.machine.cores} cores; torch {first.versions['torch']}, transformers "
        f"{first.versions['transformers']}. Each of {len({row.seed for row in groups[0].rows})} seeds has a text of "
        "its own to calibrate on. Perplexity is of text that no choice has seen; where it is confirming text, the "
        "optimum was not found on it either. `NAME:N`: N sets are compared by their measured loss.",
        "## All together",
        "Over all models, texts, k and seeds. First: share of (model, text, k) where the method is first or tied "
        "within the spread over seeds. Ratio: perplexity over the optimum's, where it is known. Passes: forward passes "
        "over the ranking text at k = L/4, the analysis included, as a share of greedy-loss's.",
        _together(groups),
    ]
    for group in groups:
        rows = group.rows
        parts += [
            f"## {group.model} ({group.num_blocks} blocks), {group.text}",
            f"Dense perplexity {group.dense_perplexity:.2f} on {group.tokens:,} tokens"
            + (" of confirming text" if group.confirmed else "")
            + "; ranking text of "
            f"{rows[0].calibration_tokens:,} tokens, a quarter as many for the one pass, windows of "
            f"{rows[0].window_tokens}. Mean ratio to the optimum over seeds ± standard deviation, and rank in brackets"
            + ("" if all(group.reference(k)[1] for k in group.ks) else "; k*: to the best set found, optimum unknown")
            + ".",
            f"![perplexity over dense against the share of blocks dropped]({PICTURES}/{group.picture_name})",
            _one(group),
        ]
    return "\n\n".join(parts) + "\n"


def _together(groups: Sequence[Group]) -> str:
    rows = []
    for label in dict.fromkeys(label for group in groups for label in group.labels):
        own = [group for group in groups if label in group.labels]  # not every estimator was tried on every text
        ranks = [group.rank(label, k) for group in own for k in group.ks]
        known = [ratio for group in own for k in group.ks if group.reference(k)[1] for ratio in group.ratios(label, k)]
        means = [group.mean(label, k) for group in own for k in group.ks if group.reference(k)[1]]
        rows.append(
            (
                sum(rank > 1 for rank in ranks) / len(ranks),
                statistics.mean(known),
                (
                    label,
                    f"{sum(rank == 1 for rank in ranks) / len(ranks):.0%}",
                    f"{statistics.mean(ranks):.1f}",
                    f"{statistics.mean(known):.3f}",
                    f"{statistics.quantiles(known, n=20)[-1]:.3f}",
                    f"{max(means):.3f}",
                    f"{max(known):.3f}",
                    f"{_mean(group.jaccard(label) for group in own):.2f}",
                    _per_size(own, partial(_share, label=label)),
                ),
            )
        )
    header = (
        "method", "first", "mean rank", "mean ratio", "95th percentile", "worst mean over seeds", "worst", "Jaccard",
        "passes / greedy",
    )  # fmt: skip
    return table(header, [row for _, _, row in sorted(rows)])


def _mean(values: Iterable[float]) -> float:
    """Of those that are numbers: one seed alone has no stability."""
    numbers = [value for value in values if not math.isnan(value)]
    return statistics.mean(numbers) if numbers else math.nan


def _per_size(groups: Sequence[Group], figure: Callable[[Group], float]) -> str:
    """A figure by number of blocks: its mean over the groups of that size."""
    sizes = sorted({group.num_blocks for group in groups})
    means = (statistics.mean(figure(group) for group in groups if group.num_blocks == size) for size in sizes)
    return ", ".join(f"{mean:.2f} (L={size})" for size, mean in zip(sizes, means, strict=True))


def _share(group: Group, *, label: str) -> float:
    k = min(max(1, round(group.num_blocks / 4)), group.ks[-1])
    return group.passes(label, k) / group.passes("greedy-loss:0", k)


def _one(group: Group) -> str:
    def cell(label: str, k: int) -> str:
        return f"{group.mean(label, k):.3f} ± {group.spread(label, k):.3f} ({group.rank(label, k)})"

    order = sorted(group.labels, key=lambda label: statistics.mean(group.mean(label, k) for k in group.ks))
    rows = [(label, *(cell(label, k) for k in group.ks), f"{group.jaccard(label):.2f}") for label in order]
    heads = (f"k={k}" + ("" if group.reference(k)[1] else "*") for k in group.ks)
    return table(("method", *heads, "Jaccard"), rows)


def read_confirmed(records: Path) -> Confirmed | None:
    path = confirmed_path(records)
    return Confirmed.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_groups(folder: Path) -> list[Group]:
    found = [(rows, read_confirmed(path)) for path in sorted(folder.glob("*.jsonl")) if (rows := read_study(path))]
    if not found:
        raise UserError(f"{folder} has no records; make some with `python -m bench.selection_study`")
    return sorted(
        (Group(rows, confirmed) for rows, confirmed in found),
        key=lambda group: (group.num_blocks, group.model, group.text),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()

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
