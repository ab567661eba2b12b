"""Work out the figures of the study's records: of one model on one text (`Group`), and over a model's texts (`Texts`).

Ratio: the perplexity of the choice over that of the optimum on the same text, on the confirming text where there is
one. Where the optimum is not known, it is over the best set that any method chose there on any seed. Rank: one more
than the methods that this one is behind, seed by seed (`Group.behind`): the same seed is the same calibration text.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

from bench.studies.selection_study import Confirmed, StudyRow, key_of
from mi_prun.comparison.comparison_plots import quality_svg
from mi_prun.quality.evaluator import Dropped

TIE = 1e-9


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
        self.ks = sorted({k for _, k in self.cells})

    def at(self, k: int) -> list[str]:
        """Return the methods that were tried at k on as many seeds as any. Where a run was stopped half way, the rest
        is left out.
        """
        seeds = max(len(cell) for (_, other), cell in self.cells.items() if other == k)
        return [label for label in self.labels if len(self.cells.get((label, k), ())) == seeds]

    def ks_of(self, label: str) -> list[int]:
        """Return the numbers of blocks that a method was tried at."""
        return [k for k in self.ks if label in self.at(k)]

    def perplexity(self, row: StudyRow) -> float:
        """Return the perplexity of a choice, on the confirming text where there is one."""
        return row.perplexity if self.confirmed is None else self.confirmed.perplexity[key_of(row.row.dropped)]

    @property
    def dense_perplexity(self) -> float:
        """The dense model's perplexity, on the confirming text where there is one."""
        return self.rows[0].dense_perplexity if self.confirmed is None else self.confirmed.perplexity[""]

    @property
    def tokens(self) -> int:
        """The number of tokens of the text that the figures are of."""
        return self.rows[0].evaluation_tokens if self.confirmed is None else self.confirmed.tokens

    def reference(self, k: int) -> tuple[float, bool]:
        """Return the perplexity that ratios are taken to, and whether it is the optimum's."""
        rows = [row for label in self.at(k) for row in self.cells[label, k]]
        known = [
            row.optimum_perplexity if self.confirmed is None else self.confirmed.perplexity[key_of(row.optimum_dropped)]
            for row in rows
            if row.optimum_perplexity is not None and row.optimum_dropped is not None
        ]
        best = min(self.perplexity(row) for row in rows)
        # The optimum's race may lose to a set that it threw away by chance; never divide by the worse of the two.
        return (min(best, known[0]), True) if known else (best, False)

    def ratios(self, label: str, k: int) -> list[float]:
        """Return the ratio of each choice of a method at k."""
        reference = self.reference(k)[0]
        return [self.perplexity(row) / reference for row in self.cells[label, k]]

    def mean(self, label: str, k: int) -> float:
        """Return the mean ratio over seeds."""
        return statistics.mean(self.ratios(label, k))

    def spread(self, label: str, k: int) -> float:
        """Return the standard deviation of the ratio over seeds; 0 for one seed."""
        values = self.ratios(label, k)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def by_seed(self, label: str, k: int) -> dict[int, float]:
        """Return the ratio of each seed."""
        rows = self.cells[label, k]
        return dict(zip((row.seed for row in rows), self.ratios(label, k), strict=True))

    def behind(self, label: str, other: str, k: int) -> bool:
        """Tell whether `label` is behind `other`.

        It is where it is worse on every seed that both have, or worse on average by more than the standard deviation of
        the difference over them. The first rule is there because one wild seed makes the deviation large, which excuses
        no loss on the others. Without a common seed there is nothing to tell them by.
        """
        mine, theirs = self.by_seed(label, k), self.by_seed(other, k)
        differences = [mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()]
        if not differences:
            return False
        spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
        return min(differences) > TIE or statistics.mean(differences) > max(spread, TIE)

    def told_apart(self, label: str, other: str, k: int) -> bool:
        """Tell whether the mean difference of two methods, over common seeds, is more than the standard error of
        measuring it.

        The error is that of their sets' distances from the best set, taken as if they had nothing in common.
        """
        mine, theirs = self.by_seed(label, k), self.by_seed(other, k)
        errors = [self.errors(name, k) for name in (label, other)]
        seeds = mine.keys() & theirs.keys()
        difference = statistics.mean(mine[seed] - theirs[seed] for seed in seeds)
        error = statistics.mean(math.hypot(*(own[seed] for own in errors)) for seed in seeds)
        return abs(difference) > error

    def errors(self, label: str, k: int) -> dict[int, float]:
        """Return the standard error of each seed's ratio; 0 where it is not known."""
        known = {} if self.confirmed is None else self.confirmed.error_nats
        ratios = self.by_seed(label, k)
        return {row.seed: ratios[row.seed] * known.get(key_of(row.row.dropped), 0.0) for row in self.cells[label, k]}

    def first(self, label: str, k: int) -> bool:
        """Tell whether a method is behind no other that it can be told apart from."""
        return not any(
            self.behind(label, other, k) and self.told_apart(label, other, k) for other in self.at(k) if other != label
        )

    def rank(self, label: str, k: int) -> int:
        """Return the rank of a method: 1 for each that is behind no other, the first and all that are tied with it."""
        return 1 + sum(self.behind(label, other, k) for other in self.at(k) if other != label)

    def picture(self) -> str:
        """Draw perplexity over dense against the share of blocks as SVG: a line for each method, means over seeds."""
        rows = []
        for label in self.labels:
            for k in self.ks_of(label):
                cell = self.cells[label, k]
                if cell[0].label != cell[0].row.label:
                    continue  # another estimator: in the tables, too many lines for a picture
                mean = statistics.mean(self.perplexity(row) for row in cell)
                update = {"perplexity": mean, "dense_perplexity": self.dense_perplexity}
                rows.append(cell[0].row.model_copy(update=update))
        return quality_svg(rows)

    @property
    def picture_name(self) -> str:
        """The file name of the group's picture."""
        return f"{self.model}.{self.text}.svg"

    def jaccard(self, label: str) -> float:
        """Return the mean over k of the mean pairwise Jaccard index, over seeds, of the sets dropped."""
        return mean_of_numbers(
            x for k in self.ks_of(label) for x in _jaccards(row.row.dropped for row in self.cells[label, k])
        )

    def passes(self, label: str, k: int) -> float:
        """Return the mean passes over the ranking text of a method at k."""
        return statistics.mean(row.row.passes for row in self.cells[label, k])


class Texts:
    """The groups of one model: one for each text."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.model, self.num_blocks = groups[0].model, groups[0].num_blocks
        self.labels = list(dict.fromkeys(label for group in groups for label in group.labels))
        self.ks = sorted({k for group in groups for k in group.ks})

    def having(self, label: str, k: int) -> list[Group]:
        """Return the texts that a method was tried on at that k: not every estimator was on every text."""
        return [group for group in self.groups if k in group.ks_of(label)]

    def passes(self, label: str, k: int) -> float:
        """Return the mean passes of a method at k, over the texts."""
        return mean_of_numbers(group.passes(label, k) for group in self.having(label, k))

    def jaccard(self, label: str) -> float:
        """Return the mean Jaccard index of the sets dropped on different texts, pair by pair.

        A pair is of the same k and the same number of the seed.
        """
        values: list[float] = []
        for k in self.ks:
            by_seed: dict[int, list[Dropped]] = defaultdict(list)
            for group in self.having(label, k):
                for row in group.cells[label, k]:
                    by_seed[row.seed].append(row.row.dropped)
            values += [x for sets in by_seed.values() for x in _jaccards(sets)]
        return mean_of_numbers(values)

    def spread(self, label: str) -> float:
        """Return the standard deviation over texts of the mean ratio, averaged over k."""
        means = [[group.mean(label, k) for group in self.having(label, k)] for k in self.ks]
        return mean_of_numbers(statistics.stdev(of_k) for of_k in means if len(of_k) > 1)


def _jaccards(sets: Iterable[Dropped]) -> list[float]:
    """Return the Jaccard index of each pair."""
    return [len(a & b) / len(a | b) for a, b in combinations(map(set, sets), 2)]


def by_model(groups: Sequence[Group]) -> list[Texts]:
    """Group the groups by their model."""
    groups_of: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        groups_of[group.model].append(group)
    return [Texts(own) for own in groups_of.values()]


def mean_of_numbers(values: Iterable[float]) -> float:
    """Return the mean of those that are numbers: one seed, or one text, has no stability."""
    numbers = [value for value in values if not math.isnan(value)]
    return statistics.mean(numbers) if numbers else math.nan
