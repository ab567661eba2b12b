"""Turn the records of healing into tables.

    python -m bench.studies.heal_report bench/published/recovery -o docs/explanation/healing-study.md

A line of `bench.studies.heal_study` is a row of the table of its model and set of blocks. `tasks*.jsonl` are records of
`mi-prun-bench tasks`. What else the folder has is left out; its README has the figures.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records.schema import read_lines
from bench.records.task_schema import TaskRecord
from bench.records.task_summary import MeanRow, TaskRow, mean_rows, model_key, task_rows
from bench.studies.heal_study import cell, read_records, said_blocks
from bench.studies.selection_report import report_options
from mi_prun.checkpoint.card import table
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import write_text
from mi_prun.quality.evaluator import Dropped
from mi_prun.settings import HealSettings

TASKS = "tasks"  # so begin the names of the files of tasks


@dataclass(frozen=True)
class Case:
    """A healed model of the study. file: that it is a line of."""

    file: str
    record: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model's name. The same folder had capitals in some records."""
        return str(self.record["model"]).lower()

    @property
    def dropped(self) -> Dropped:
        """The blocks that it lacks."""
        return tuple(self.record["dropped"])

    @property
    def healing(self) -> Mapping[str, Any]:
        """What its manifest says of the healing."""
        healing: Mapping[str, Any] = self.record["healing"]
        return healing

    def setting(self, name: str) -> Any:
        """Return a setting; None for one that the healing did not use, which newer records leave out."""
        return self.healing["settings"].get(name)

    @property
    def settings(self) -> str:
        """What is told of the settings: step and rate of a training, and a rank or a seed that is not the default."""
        chosen = self.healing["settings"]
        said = [f"seed {self.healing['seed']}"] if self.healing["seed"] != HealSettings.seed else []
        if self.healing["tokens"]:
            said += [f"rank {self.setting('rank')}"] if self.setting("rank") not in (None, HealSettings.rank) else []
            rate = f"{chosen['learning_rate']:g}"
            if (share := self.setting("share_of_rms")) is not None:
                rate = f"at most {rate}, and {share:g} of RMS"
            said += [f"{chosen['batch_tokens']:,} a step", rate, chosen["train_dtype"]]
        return ", ".join(said)

    def alike(self) -> tuple[Hashable, ...]:
        """Return what two healings must agree in to be held against each other, beside blocks, case and seed."""
        settings = ("rank", "learning_rate", "share_of_rms", "batch_tokens", "train_dtype", "window_tokens")
        return *(self.setting(name) for name in settings), json.dumps(self.record.get("judged_on"))

    @property
    def judged(self) -> Mapping[str, Mapping[str, float]]:
        """Perplexities of each text, and the share of the gap that was closed."""
        judged: Mapping[str, Mapping[str, float]] = self.record["judged"]
        return judged

    def kl(self) -> str:
        """Say KL(dense || pruned) and of the healed model, the mean over the held-out parts of the texts."""
        quality = self.healing["quality"]
        pruned, healed = (
            statistics.mean(part[name] for part in quality) for name in ("pruned_kl_nats", "healed_kl_nats")
        )
        return f"{pruned:.2f} -> {healed:.2f}"


def read_cases(folder: Path) -> list[Case]:
    """Read the healed models of a folder's studies. Raises UserError where there is none."""
    cases = [
        Case(path.stem, record)
        for path in sorted(folder.glob("*.jsonl"))
        if not path.name.startswith(TASKS)
        for record in read_records(path)
        if "judged" in record
    ]
    if not cases:
        raise UserError(f"{folder} has no records; make some with `python -m bench.studies.heal_study`")
    return cases


def read_refused(folder: Path) -> list[tuple[str, ...]]:
    """Read the healings that the gate refused: model, blocks, case, learning rate, what it said, file."""
    return [
        (
            str(record["model"]).lower(),
            said_blocks(record["dropped"]),
            f"`{record['case']}`",
            str(
                json.loads(record["key"][record["key"].index("{") :])["learning_rate"]
                or f"the default of {record['commit']}"
            ),
            str(record["refused"]),
            path.stem,
        )
        for path in sorted(folder.glob("*.jsonl"))
        if not path.name.startswith(TASKS)
        for record in read_records(path)
        if "refused" in record
    ]


def grouped(cases: Sequence[Case], key: Callable[[Case], Hashable]) -> list[list[Case]]:
    """Return the cases that share a key, in the order of the first of each."""
    groups: dict[Hashable, list[Case]] = defaultdict(list)
    for case in cases:
        groups[key(case)].append(case)
    return list(groups.values())


def page(
    cases: Sequence[Case], tasks: Mapping[str, Sequence[TaskRecord]], refused: Sequence[tuple[str, ...]] = ()
) -> str:
    """Return the page. tasks: records of `mi-prun-bench tasks` by the name of their file. refused: by the gate."""
    ordered = sorted(cases, key=lambda case: (case.model, len(case.dropped), case.dropped))
    parts = [
        "# The healing study: the figures",
        "Made by `python -m bench.studies.heal_report`; do not edit. The records and the commands that make them are "
        "in `bench/published/recovery/`. What follows from them: [what healing gives](what-healing-gives.md).",
        "- Cells of a text: perplexity dense; pruned; **healed** (share of the gap in log-perplexity that is closed). "
        "It was not healed on, and the gate did not look at it.\n"
        "- **By**: `fit` the closed form alone, `lora` and `all` the closed form and a training, `-alone` the training "
        "without the closed form; behind it what was asked for, in tokens or minutes.\n"
        "- **KL**: from the dense model, pruned -> healed, nats a token, on the held-out part of the healing's texts.\n"
        "- **Settings**: tokens of a step, learning rate, what products are computed in; rank and seed where they are "
        "not the default. Seconds of `ratios`, `gemma` and `bundled` are of one core beside other work.",
        *(part for group in grouped(ordered, lambda case: (case.model, case.dropped)) for part in section(group)),
        *seeds_section(ordered),
        *sets_section(ordered),
        *refused_section(refused),
        *(part for name, records in tasks.items() for part in tasks_section(name, records)),
    ]
    return "\n\n".join(parts) + "\n"


def section(cases: Sequence[Case]) -> list[str]:
    """Return the parts of the page about one model without one set of blocks."""
    texts = list(dict.fromkeys(name for case in cases for name in case.judged))
    rows = [
        (
            f"`{case.record['case']}`",
            f"{case.healing['tokens']:,}",
            *(cell(case.judged.get(text)) for text in texts),
            case.kl(),
            case.settings,
            f"{case.healing['seconds']:.0f}",
            case.record["machine"]["cpu"],
            case.file,
        )
        for case in cases
    ]
    header = ("by", "tokens", *texts, "KL", "settings", "seconds", "processor", "record")
    return [f"## {cases[0].model} without {said_blocks(cases[0].dropped)}", table(header, rows)]


def refused_section(refused: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the parts about what the gate refused."""
    if not refused:
        return []
    header = ("model", "without", "by", "learning rate", "why", "record")
    return ["## Refused by the gate", "The healed model was not written.", table(header, refused)]


def seeds_section(cases: Sequence[Case]) -> list[str]:
    """Return the parts about how much seeds scatter; none where each healing was done once."""

    def key(case: Case) -> Hashable:
        return case.file, case.model, case.dropped, case.record["case"], *case.alike()

    def scatter(group: Sequence[Case], text: str) -> str:
        closed = [judged["gap_closed"] for case in group if (judged := case.judged.get(text)) is not None]
        if len(closed) < 2:
            return "-"
        return f"{statistics.mean(closed):.1%} +- {statistics.stdev(closed):.1%}"

    groups = [group for group in grouped(cases, key) if len({case.healing["seed"] for case in group}) > 1]
    if not groups:
        return []
    texts = list(dict.fromkeys(name for group in groups for name in group[0].judged))
    rows = [
        (
            *(
                group[0].model,
                said_blocks(group[0].dropped),
                f"`{group[0].record['case']}`",
                str(len({case.healing["seed"] for case in group})),
            ),
            *(scatter(group, text) for text in texts),
        )
        for group in groups
    ]
    return [
        "## Over seeds",
        "Share of the gap that is closed: mean +- standard deviation.",
        table(("model", "without", "by", "seeds", *texts), rows),
    ]


def sets_section(cases: Sequence[Case]) -> list[str]:
    """Return the parts about sets of as many blocks, healed alike; none where there is one set of each size."""

    def key(case: Case) -> Hashable:
        return (
            *(case.model, len(case.dropped), case.record["case"], case.healing["seed"]),
            *case.alike(),
        )

    groups = [group for group in grouped(cases, key) if len({case.dropped for case in group}) > 1]
    if not groups:
        return []
    texts = list(dict.fromkeys(name for group in groups for name in group[0].judged))
    rows = [
        (
            *(case.model, said_blocks(case.dropped), f"`{case.record['case']}`", f"{case.healing['tokens']:,}"),
            *(
                "{pruned:.1f} -> **{healed:.1f}**".format(**judged) if (judged := case.judged.get(text)) else "-"
                for text in texts
            ),
        )
        for group in groups
        for case in group
    ]
    return [
        "## Does the best set stay the best?",
        "Sets of as many blocks, healed alike; perplexity pruned -> healed.",
        table(("model", "without", "by", "tokens", *texts), rows),
    ]


def tasks_section(name: str, records: Sequence[TaskRecord]) -> list[str]:
    """Return the parts about the tasks of one file: right answers, and the paired difference to the dense model."""
    rows = task_rows(records)
    means = {mean.arm.identity: mean for mean in mean_rows(rows)}
    names = list(dict.fromkeys(row.record.score.task for row in rows))
    by_model: dict[Hashable, dict[str, TaskRow]] = defaultdict(dict)
    for row in rows:
        by_model[model_key(row.record)][row.record.score.task] = row
    lines = []
    for by_task in by_model.values():
        arm = next(iter(by_task.values())).record.arm
        healing = f"`{arm.healing.method}`" if arm.healing else ""
        if arm.healing and arm.healing.tokens:
            healing += f", {arm.healing.tokens:,} tokens"
        scores = tuple(f"{by_task[task].record.score.score:.1%}" if task in by_task else "-" for task in names)
        flips = [row.difference.flips for row in by_task.values() if row.difference is not None]
        blocks = said_blocks(arm.blocks.dropped) or "nothing"
        lines.append((blocks, healing, *scores, mean_cell(means.get(arm.identity)), str(sum(flips)) if flips else ""))
    items = sorted({row.record.score.items for row in rows})
    return [
        f"## Tasks: `{name}`",
        f"Right answers of {', '.join(map(str, items))} items; the mean, and its difference to dense in points with "
        "its 95 % interval; flips: answers that turned right or wrong, of all tasks.",
        table(("without", "healed by", *names, "mean", "flips"), lines),
    ]


def mean_cell(mean: MeanRow | None) -> str:
    """Say the mean of the tasks and the difference to dense."""
    if mean is None:
        return "-"
    if mean.difference is None:
        return f"{mean.score:.1%}"
    difference, low, high = (100 * value for value in mean.difference)
    return f"{mean.score:.1%}; {difference:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    options = report_options(__doc__)

    def write() -> None:
        folder = options.results
        tasks = {
            path.name: read_lines(folder, path.name, TaskRecord) for path in sorted(folder.glob(f"{TASKS}*.jsonl"))
        }
        write_text(options.output, page(read_cases(folder), tasks, read_refused(folder)))

    sys.exit(run_command(write))


if __name__ == "__main__":
    main()
