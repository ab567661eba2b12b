"""Turn the study's records of real models into tables and one picture.

    python -m bench.studies.real_report bench/published/real-models -o docs/explanation/real-models.md

The tables say how methods that measure nothing compare with the better of `bi` and `angular`, what dropping costs, and
where the default is first. In `<model>.<text>-on-<other>.losses.jsonl` is what a study's sets lose on another text;
in `<model>.pairs.jsonl` are pairs of sets, compared on more text.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from bench.studies.selection_report import report_options
from bench.studies.selection_study import Pair, StudyRow, read_rows, read_study
from bench.studies.set_losses import LastWords, SetLoss, read_last_words, read_losses
from mi_prun.checkpoint.card import table
from mi_prun.comparison.comparison_plots import COLOURS, MARKERS
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.figure import new_figure, svg_of
from mi_prun.files import write_text
from mi_prun.quality.evaluator import Dropped
from mi_prun.settings import PlanSettings

BASELINES = ("bi:0", "angular:0")
DEFAULT = "hybrid"
BY_KL = f"{DEFAULT} --criterion kl"
VARIANTS = (
    DEFAULT,
    f"{DEFAULT} --recall 0.0625",
    *(f"{BY_KL} --recall {recall}" for recall in ("0", "0.0625", "0.125")),
)
PUBLISHED, MINIMUM = "mi-prun:0 reading", "mi-optimum:0 reading"  # Fast-Block-Select, and the exact minimum of J
MOST_MEAN, MOST_SINGLE = 1.02, 1.5  # the bar of this project for PUBLISHED
EQUAL = 1.0005  # as good: the same set on two machines differs by less
FAR_OFF = 4.0  # over the best at the same k: such a point is at the picture's edge
LOSSES, LAST_WORDS = ".losses.jsonl", ".last-words.jsonl"  # of `bench.studies.set_losses`, in the same folder
PAIRS = ".pairs.jsonl"  # what `bench.studies.selection_study --confirm --pair` prints, a line for each pair
PICTURE = "real-models.svg"
Figure = Callable[[StudyRow], float]
PERPLEXITY: Figure = attrgetter("perplexity")
KL: Figure = attrgetter("kl_nats_per_token")


class Text:
    """The rows of one model on one text, by method, k and seed."""

    def __init__(self, rows: Sequence[StudyRow]) -> None:
        self.rows, self.model, self.text = rows, rows[0].model, rows[0].text
        self.num_blocks, self.dense = rows[0].row.num_blocks, rows[0].dense_perplexity
        self.tokens, self.window = rows[0].evaluation_tokens, rows[0].window_tokens
        self.by: dict[tuple[str, int], dict[int, StudyRow]] = defaultdict(dict)
        for row in rows:
            self.by[row.label, len(row.row.dropped)][row.seed] = row
        self.labels = list(dict.fromkeys(label for label, _ in self.by))
        self.ks = sorted({k for _, k in self.by})
        self.seeds = sorted({row.seed for row in rows})
        self.left_out: list[str] = []  # methods that were not measured on this text

    def perplexities(self, label: str, k: int) -> dict[int, float]:
        """Return the perplexity of each seed's choice."""
        return self.figures(PERPLEXITY, label, k)

    def figures(self, figure: Figure, label: str, k: int) -> dict[int, float]:
        """Return a figure of each seed's choice."""
        return {seed: figure(row) for seed, row in self.by.get((label, k), {}).items()}

    def mean(self, label: str, k: int) -> float:
        """Return the mean perplexity over seeds; NaN where there is none."""
        return self.mean_of(PERPLEXITY, label, k)

    def mean_of(self, figure: Figure, label: str, k: int) -> float:
        """Return the mean of a row's figure over seeds; NaN where there is none."""
        figures = self.figures(figure, label, k).values()
        return statistics.mean(figures) if figures else math.nan

    def first_set(self, label: str, k: int) -> Dropped:
        """Return the set that a method chose on its first seed."""
        rows = self.by[label, k]
        return rows[min(rows)].row.dropped

    def seeds_of(self, label: str) -> str:
        """Return how many seeds a method has, from the fewest to the most over k; nothing where it has no row."""
        counts = {len(own) for k in self.ks if (own := self.perplexities(label, k))}
        return "-".join(str(count) for count in sorted(counts) if count in (min(counts), max(counts)))

    def shared_seeds(self, labels: Sequence[str]) -> set[int]:
        """Return the seeds that each of the methods has."""
        own = [{seed for k in self.ks for seed in self.by.get((label, k), {})} for label in labels]
        return set.intersection(*own) if own else set()

    def bar(self, k: int, seeds: Iterable[int]) -> float:
        """Return the lower mean of the baselines over some seeds."""
        return min(statistics.mean(self.perplexities(label, k)[seed] for seed in seeds) for label in BASELINES)

    def best(self, k: int) -> float:
        """Return the lowest mean of all methods."""
        return min(self.mean(label, k) for label in self.labels if self.perplexities(label, k))

    def beside_others(self, variant: str, k: int, figure: Figure) -> tuple[float, float] | None:
        """Return the mean of a variant of the default over the lowest mean of the other methods on its seeds, and the
        standard error.

        The error is that of the mean seed by seed difference, in that lowest mean; NaN with one seed. A set is no
        better than itself, though machines round differently. None where the variant has no row, or no other method
        has all of its seeds.
        """
        rows = self.beside_best(variant, k, figure)
        if not rows:
            return None
        lowest = statistics.mean(figure(best) for _, best in rows)
        difference = [
            0.0 if mine.row.dropped == best.row.dropped else figure(mine) - figure(best) for mine, best in rows
        ]
        error = statistics.stdev(difference) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
        return 1 + statistics.mean(difference) / lowest, error / lowest

    def beside_best(self, variant: str, k: int, figure: Figure) -> list[tuple[StudyRow, StudyRow]]:
        """Return, for each seed of a variant of the default, its row and that of the other method with the lowest mean
        on its seeds; none where there is no such method.
        """
        own = self.by.get((variant, k), {})
        others = [
            [theirs[seed] for seed in own]
            for label in self.labels
            if not label.startswith(DEFAULT) and own.keys() <= (theirs := self.by.get((label, k), {})).keys()
        ]
        if not own or not others:
            return []
        return [*zip(own.values(), min(others, key=lambda rows: statistics.mean(map(figure, rows))), strict=True)]

    def behind(self, k: int) -> tuple[Dropped, Dropped] | None:
        """Return the default's set and the best other one, where the default is behind it by its only seed."""
        rows = self.beside_best(DEFAULT, k, PERPLEXITY)
        if len(rows) != 1:
            return None
        mine, best = rows[0]
        different = mine.row.dropped != best.row.dropped
        return (mine.row.dropped, best.row.dropped) if different and mine.perplexity > best.perplexity else None

    def elsewhere(self, losses: Sequence[SetLoss]) -> Text:
        """Return the same choices judged on another text, without the methods whose sets were not all measured there.

        Raises UserError where that is the default or a baseline.
        """
        by_set = {loss.dropped: loss.perplexity for loss in losses}
        left_out = {row.label for row in self.rows if row.row.dropped not in by_set}
        needed = {label for label in left_out if label in (*BASELINES, *VARIANTS)}
        if needed or () not in by_set:
            missing = {(), *(row.row.dropped for row in self.rows if row.label in needed)} - by_set.keys()
            raise UserError(
                f"{self.model} on {losses[0].text}: {len(missing)} sets that were chosen on {self.text} are not "
                "measured; run `bench.studies.set_losses --sets-of` again"
            )
        rows = [
            row.model_copy(update={"perplexity": by_set[row.row.dropped], "dense_perplexity": by_set[()]})
            for row in self.rows
            if row.label not in left_out
        ]
        there = Text(rows)
        there.left_out = sorted(left_out)
        there.text, there.tokens, there.window = losses[0].text, losses[0].tokens, losses[0].window_tokens
        return there

    def ratios(self, label: str, k: int) -> tuple[float, float]:
        """Return a method's mean over that of the better baseline on its seeds, and its worst single seed over that
        seed's.
        """
        own = self.perplexities(label, k)
        better = {seed: min(self.perplexities(name, k)[seed] for name in BASELINES) for seed in own}
        return self.mean(label, k) / self.bar(k, own), max(own[seed] / better[seed] for seed in own)


Elsewhere = Mapping[Text, Sequence[Text]]  # a study's text -> its choices, judged on each other text


def is_variant(label: str) -> bool:
    """Return whether a label is of the default with another setting, or with something left out."""
    return label.startswith(DEFAULT) and label != DEFAULT


def page(
    texts: Sequence[Text],
    counts: Sequence[LastWords] = (),
    elsewhere: Elsewhere | None = None,
    pairs: Sequence[Pair] = (),
) -> str:
    """Return the page. counts: what sets of any of the models foretell. elsewhere: texts as judged on other ones.

    pairs: sets of any of the models, compared on more text.
    """
    elsewhere = elsewhere or {}
    parts = [
        "# Real models: the figures",
        "Made by `python -m bench.studies.real_report`; do not edit. The records and the commands that make them are "
        "in `bench/published/real-models/`. What follows from them: [choosing on real models]"
        "(selection-on-real-models.md).",
        f"![perplexity over dense against k, a line for each method]({PICTURE})",
        "- Perplexity is measured on text that no choice has seen; means over a method's own seeds, each with a "
        "calibration text of its own. The figure has the seeds that all its methods have.\n"
        "- **bar**: the mean over that of the better of `bi` and `angular` at this k; in brackets the worst single "
        "seed over the better of both on that seed.\n"
        "- **KL**: of the dense from the pruned distribution, nats a token.\n"
        "- **Passes**: blocks x tokens that the choice takes, the analysis included, over those of one pass of the "
        "dense model over the ranking text. That was 4,096 tokens in some rows and up to 7,168 in others, so the one "
        "pass of the analysis over 4,096 tokens counts .57 to 1. Seconds are those of the choice; other work ran on "
        "the machine.\n"
        "- A method with an estimator behind its name looks at mutual information with that estimator.\n"
        f"- `hybrid` is the default: `--criterion ce`, `--recall {PlanSettings.recall:g}`. `without mi`: mutual "
        "information proposed no candidate.",
        *bar_section(texts),
        *default_section(texts, elsewhere),
        *behind_section(texts, elsewhere, pairs),
    ]
    parts += [part for text in texts for part in section(text, counts, elsewhere.get(text, ()))]
    return "\n\n".join(parts) + "\n"


def bar_section(texts: Sequence[Text]) -> list[str]:
    """Return the parts of the page about the scores that measure nothing, held against the bar."""
    there = [text for text in texts if {PUBLISHED, MINIMUM} <= {*text.labels}]
    ks = sorted({k for text in there for k in text.ks})

    def cell(text: Text, k: int) -> str:
        if not text.perplexities(PUBLISHED, k):
            return "-"
        mean, worst = text.ratios(PUBLISHED, k)
        said = f"{mean:.3f} ({worst:.2f})"
        return f"**{said}**" if mean > MOST_MEAN or worst > MOST_SINGLE else said

    def minimum(text: Text, k: int) -> str:
        if not text.perplexities(PUBLISHED, k):
            return "-"
        ratio = text.mean(MINIMUM, k) / text.mean(PUBLISHED, k)
        return f"**{ratio:.3f}**" if ratio > EQUAL else f"{ratio:.3f}"

    def by_text(cell: Callable[[Text, int], str]) -> str:
        rows = [(text.model, text.text, str(len(text.seeds)), *(cell(text, k) for k in ks)) for text in there]
        return table(("model", "text", "seeds", *(f"k={k}" for k in ks)), rows)

    if not there:
        return []
    return [
        "## Scores that measure nothing",
        f"`mi-prun --rerank 0` (Fast-Block-Select) against the bar. Bold: over {MOST_MEAN} in the mean, or over "
        f"{MOST_SINGLE} on a single seed.",
        by_text(cell),
        "The exact minimum of J (`mi-optimum`) over Fast-Block-Select's set, means over seeds. Bold: behind.",
        by_text(minimum),
    ]


def default_section(texts: Sequence[Text], elsewhere: Elsewhere) -> list[str]:
    """Return the parts of the page that say where the default is first."""

    def cell(text: Text, variant: str, figure: Figure, k: int) -> str:
        if k not in text.ks or (beside := text.beside_others(variant, k, figure)) is None:
            return "-"
        ratio, error = beside
        said = f"{ratio:.3f}" + ("" if math.isnan(error) else f" +- {error:.3f}")
        return said if ratio - 1 <= (0.0 if math.isnan(error) else error) else f"**{said}**"

    judged: list[tuple[str, Text, str, Figure]] = []
    for text in texts:
        judged += [(text.text, text, "perplexity", PERPLEXITY), (text.text, text, "KL", KL)]
        judged += [(text.text, there, "perplexity", PERPLEXITY) for there in elsewhere.get(text, ())]
    ks = sorted({k for _, there, _, _ in judged for k in there.ks})
    rows = [
        (
            *(there.model, chosen_on, there.text, name, variant, seeds),
            *(cell(there, variant, figure, k) for k in ks),
        )
        for chosen_on, there, name, figure in judged
        for variant in VARIANTS
        if (seeds := there.seeds_of(variant))
    ]
    if not rows:
        return []
    return [
        "## The default beside the others",
        "Its mean perplexity, or KL, over the lowest of another method here at the same k, on the same seeds; +- the "
        "standard error of the mean difference over seeds. Bold: behind by more than that, or by anything where there "
        "is one seed.",
        table(("model", "chosen on", "judged on", "by", "method", "seeds", *(f"k={k}" for k in ks)), rows),
    ]


def behind_section(texts: Sequence[Text], elsewhere: Elsewhere, pairs: Sequence[Pair]) -> list[str]:
    """Return the parts of the page that say how sure it is that the default is behind, where its one seed is."""
    by_sets = {(pair.model, pair.text, *pair.dropped): pair for pair in pairs}

    def words(chosen_on: str, there: Text, k: int, mine: Dropped, best: Dropped) -> tuple[str, ...]:
        blocks = (" ".join(map(str, dropped)) for dropped in (mine, best))
        case = there.model, chosen_on, there.text, str(k), *blocks
        pair = by_sets.get((there.model, there.text, mine, best))
        if pair is None:
            return *case, "-", "-", "-", "not measured"
        sure = pair.difference_nats > pair.standard_error_nats
        return (
            *case,
            *(f"{perplexity:.4g}" for perplexity in pair.perplexity),
            f"{pair.difference_nats:+.4f} +- {pair.standard_error_nats:.4f}",
            "**behind**" if sure else "ahead" if pair.difference_nats < -pair.standard_error_nats else "tied",
        )

    rows = [
        words(text.text, there, k, *sets)
        for text in texts
        for there in (text, *elsewhere.get(text, ()))
        for k in there.ks
        if (sets := there.behind(k))
    ]
    if not rows:
        return []
    tokens = sorted({pair.tokens for pair in pairs})
    return [
        "### Where one seed of it is behind",
        "Each set of a bold cell (perplexity) of `hybrid`, and the best other one, once more"
        + (f" on other parts of the text ({' or '.join(f'{count:,}' for count in tokens)} tokens)" if tokens else "")
        + ". The difference is in nats a token; +- its standard error over windows. Tied: within that error.",
        table(
            ("model", "chosen on", "judged on", "k", "its set", "other set", "perplexity", "other", "difference", "so"),
            rows,
        ),
    ]


def section(text: Text, counts: Sequence[LastWords], elsewhere: Sequence[Text]) -> list[str]:
    """Return the parts of the page about one model on one text."""

    def bar_of(text: Text) -> Callable[[str, int], str]:
        def bar(label: str, k: int) -> str:
            ratio, worst = text.ratios(label, k)
            return f"{text.mean(label, k):.4g}; {ratio:.2f} ({worst:.2f})"

        return bar

    def kl(label: str, k: int) -> str:
        return f"{text.mean_of(KL, label, k):.2f}"

    def cost(label: str, k: int) -> str:
        passes = text.mean_of(lambda row: row.row.passes, label, k)
        return f"{passes:.2f}; {text.mean_of(lambda row: row.row.seconds, label, k):.0f} s"

    def chosen(label: str, k: int) -> str:
        return " ".join(map(str, text.first_set(label, k)))

    return [
        f"## {text.model} ({text.num_blocks} blocks), {text.text}",
        f"Dense perplexity {text.dense:.2f} on {text.tokens:,} tokens, windows of {text.window}; "
        f"{len(text.seeds)} seed{'s' * (len(text.seeds) > 1)}. Cells: perplexity; bar (worst).",
        _by_k(text, bar_of(text)),
        *(
            part
            for there in elsewhere
            for part in (
                f"The same sets on {there.text}, {there.tokens:,} tokens in windows of {there.window} "
                f"(dense {there.dense:.2f}){_not_measured(there)}:",
                _by_k(there, bar_of(there)),
            )
        ),
        "KL:",
        _by_k(text, kl),
        "Passes; seconds:",
        _by_k(text, cost),
        *_last_words(text, counts),
        "Sets of the first seed:",
        _by_k(text, chosen, seeds=False),
    ]


def _not_measured(text: Text) -> str:
    return f"; {', '.join(f'`{label}`' for label in text.left_out)} not measured there" if text.left_out else ""


def _by_k(text: Text, cell: Callable[[str, int], str], *, seeds: bool = True) -> str:
    """Write a table: a row for each method, a column for each k; a dash where a method has no rows there.

    seeds: say how many seeds each method has.
    """
    rows = [
        (
            *((f"`{label}`", text.seeds_of(label)) if seeds else (f"`{label}`",)),
            *(cell(label, k) if text.perplexities(label, k) else "-" for k in text.ks),
        )
        for label in text.labels
    ]
    return table((*(("method", "seeds") if seeds else ("method",)), *(f"k={k}" for k in text.ks)), rows)


def _last_words(text: Text, counts: Sequence[LastWords]) -> list[str]:
    """Write what the sets of the first seed foretell, where it was counted."""
    by_set = {count.dropped: count for count in counts if count.model == text.model}
    if () not in by_set:
        return []

    def cell(label: str, k: int) -> str:
        count = by_set.get(text.first_set(label, k))
        return "-" if count is None else f"{count.foretold / count.items:.1%}"

    dense = by_set[()]
    said = f"Last words guessed, of {dense.items} of {dense.text}, by the sets of the first seed (dense "
    return [f"{said}{dense.foretold / dense.items:.1%}):", _by_k(text, cell, seeds=False)]


def picture(texts: Sequence[Text]) -> str:
    """Draw perplexity over dense against k as SVG, a panel for each text, a line for each method."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    columns = 2 if len(texts) > 1 else 1
    rows = math.ceil(len(texts) / columns)
    figure, axes = new_figure(4.6 * columns, 3.4 * rows, columns, rows)
    labels = list(dict.fromkeys(label for text in texts for label in text.labels if not is_variant(label)))
    panels = axes if isinstance(axes, list) else [axes]
    for panel, text in zip(panels, texts, strict=False):
        shown = [1.0]
        seeds = text.shared_seeds([label for label in labels if label in text.labels])
        for number, label in enumerate(labels):
            points = [
                (k, statistics.mean(own) / text.dense)
                for k in text.ks
                if (own := [one for seed, one in text.perplexities(label, k).items() if seed in seeds])
            ]
            if not points:
                continue
            shown += [y for k, y in points if y * text.dense <= FAR_OFF * text.best(k)]
            panel.plot(
                *zip(*points, strict=True),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                ls="-" if number < len(COLOURS) else ":",
                lw=1.3,
                ms=4,
                label=label,
            )
        panel.set_yscale("log")
        panel.set_ylim(0.95, 1.1 * max(shown))
        panel.set_title(f"{text.model}, {text.text}", fontsize=9)
        panel.set_xlabel("blocks dropped")
        panel.set_ylabel("perplexity, x dense")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_yticks([tick for tick in (1, 2, 3, 5, 10, 20, 50, 100, 1_000) if tick <= max(shown)])
        panel.yaxis.set_major_formatter("{x:g}")
    for panel in panels[len(texts) :]:
        panel.set_visible(False)
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    shown_labels = [label for label in labels if label in lines]
    handles = [lines[label] for label in shown_labels]
    figure.legend(handles, shown_labels, fontsize=8, frameon=False, loc="outside lower center", ncols=5)
    return svg_of(figure)


def read_texts(folder: Path) -> list[Text]:
    """Read the records of a folder. Raises UserError where there is none, or a baseline is missing."""
    paths = [path for path in sorted(folder.glob("*.jsonl")) if not path.name.endswith((LOSSES, LAST_WORDS, PAIRS))]
    texts = [Text(rows) for path in paths if (rows := read_study(path))]
    if not texts:
        raise UserError(f"{folder} has no records; make some with `python -m bench.studies.selection_study`")
    for text in texts:
        for label in BASELINES:
            if any(text.seeds != sorted(text.perplexities(label, k)) for k in text.ks):
                raise UserError(f"{folder}: {text.model} on {text.text} lacks rows of {label}; the bar is made of them")
    return sorted(texts, key=lambda text: (text.num_blocks, text.model, text.text))


def read_all_last_words(folder: Path) -> list[LastWords]:
    """Read what sets of all models foretell."""
    return [count for path in sorted(folder.glob(f"*{LAST_WORDS}")) for count in read_last_words(path)]


def read_pairs(folder: Path) -> list[Pair]:
    """Read the pairs of sets of all models that were compared on more text."""
    return [pair for path in sorted(folder.glob(f"*{PAIRS}")) for pair in read_rows(path, Pair)]


def read_losses_elsewhere(path: Path) -> list[SetLoss]:
    """Read what sets lose on another text. Raises UserError where there is no row, or one of recall: no plain text."""
    losses = read_losses(path)
    if not losses or any(loss.recall for loss in losses):
        there = "rows of --recall" if losses else "no rows"
        raise UserError(
            f"{path} has {there}; make it again with `bench.studies.set_losses --sets-of`, without --recall"
        )
    return losses


def read_elsewhere(folder: Path, texts: Sequence[Text]) -> Elsewhere:
    """Read what the sets of a study lose on other texts, where that was measured."""
    return {
        text: [
            text.elsewhere(read_losses_elsewhere(path))
            for path in sorted(folder.glob(f"{text.model}.{text.text}-on-*{LOSSES}"))
        ]
        for text in texts
    }


def main() -> None:
    options = report_options(__doc__)

    def write() -> None:
        texts = read_texts(options.results)
        write_text(options.output.parent / PICTURE, picture(texts))
        elsewhere = read_elsewhere(options.results, texts)
        write_text(
            options.output, page(texts, read_all_last_words(options.results), elsewhere, read_pairs(options.results))
        )

    sys.exit(run_command(write))


if __name__ == "__main__":
    main()
