"""Summarise tasks as rows: each model beside its dense one, item by item."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.records.item_pairs import ItemDifference, mean_difference, paired_difference
from bench.records.schema import HealedBy, MeasuredArm
from bench.records.task_schema import Origin, TaskRecord


@dataclass(frozen=True)
class TaskRow:
    """A task of a model. difference: to the dense model on the same items; None where that did not answer them.

    base: the dense model's record, of which the difference is.
    """

    record: TaskRecord
    difference: ItemDifference | None
    base: TaskRecord | None = None

    def line(self) -> str:
        """Return the row for a terminal."""
        score = self.record.score
        words = f"{self.record.arm.label:>16}: {score.task:14} {score.metric:11} {score.score:6.1%} of {score.items:,}"
        if self.difference is not None:
            words += (
                f", to dense {self.difference.points()} points (p {self.difference.p_value:.2g}), "
                f"{self.difference.flips} flips"
            )
        return words + (f"; {score.truncated_items} cut to the context" if score.truncated_items else "")


@dataclass(frozen=True)
class MeanRow:
    """The mean over the tasks that both the model and the dense one answered.

    difference: mean, low and high; None for the dense model.
    """

    arm: MeasuredArm
    tasks: int
    score: float
    difference: tuple[float, float, float] | None

    def line(self) -> str:
        """Return the row for a terminal."""
        words = f"{self.arm.label:>16}: {f'mean of {self.tasks}':26} {self.score:6.1%}"
        if self.difference is None:
            return words
        mean, low, high = (100 * value for value in self.difference)
        return f"{words}, to dense {mean:+.1f} [{low:+.1f}, {high:+.1f}] points"


def model_key(record: Origin) -> tuple[object, ...]:
    """Return what tells a model from others, whatever its folder is called."""
    return record.dense.weights_sha256, *record.arm.identity


def task_rows(records: Iterable[TaskRecord]) -> list[TaskRow]:
    """Return the newest record of each task and model, dense first, paired where items and prompts are the same."""
    newest = {(model_key(record), record.score.task): record for record in records}
    chosen = sorted(
        labelled_apart([*newest.values()]),
        key=lambda record: (len(record.arm.blocks.dropped), bool(record.arm.healing)),
    )
    dense = {_pair_key(record): record for record in chosen if record.arm.kind == "dense"}
    rows = []
    for record in chosen:
        base = dense.get(_pair_key(record)) if record.arm.kind != "dense" else None
        rows.append(TaskRow(record, difference_of(base, record) if base else None, base))
    return rows


def labelled_apart(records: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Give each model a label of its own: a command tells its own models apart, not those of an earlier one.

    Labels of several models get what differs behind them: the blocks, or how they were healed.
    """
    models: dict[str, list[MeasuredArm]] = defaultdict(list)
    for arm in {record.arm.identity: record.arm for record in records}.values():
        models[arm.label].append(arm)

    def label(arm: MeasuredArm) -> str:
        alike = models[arm.label]
        parts = []
        if len({other.blocks.dropped for other in alike}) > 1:
            parts.append(f"without {', '.join(map(str, arm.blocks.dropped))}")
        if arm.healing and len({other.healing for other in alike if other.blocks.dropped == arm.blocks.dropped}) > 1:
            parts.append(healed_words(arm.healing))
        return f"{arm.label} ({'; '.join(parts)})"

    return [
        record.model_copy(update={"arm": record.arm.model_copy(update={"label": label(record.arm)})})
        if len(models[record.arm.label]) > 1
        else record
        for record in records
    ]


def healed_words(by: HealedBy) -> str:
    """Say how a model was healed."""
    settings = f", settings {by.settings_sha256[:8]}" if by.settings_sha256 else ""
    return f"{by.tokens:,} tokens of {by.text}, seed {by.seed}{settings}"


def difference_of(first: TaskRecord, second: TaskRecord) -> ItemDifference:
    """Compare two records' answers, item by item."""
    return paired_difference(first.score.answers(), second.score.answers())


def comparable_answers(first: TaskRecord, second: TaskRecord) -> bool:
    """Tell whether both models were given the same texts, in the same order, with the same room."""
    return _pair_key(first) == _pair_key(second)


def _pair_key(record: TaskRecord) -> tuple[object, ...]:
    """Return what must agree for two models' answers to be pairs."""
    score = record.score
    return record.dense.weights_sha256, score.task, score.metric, score.items_sha256, score.items, record.context_tokens


def mean_rows(rows: Sequence[TaskRow]) -> list[MeanRow]:
    """Return a row for each model with more than one task. A pruned model's is over the tasks that have a pair."""
    means = []
    for key in dict.fromkeys(model_key(row.record) for row in rows):
        own = [row for row in rows if model_key(row.record) == key]
        arm = own[0].record.arm
        if arm.kind != "dense":
            own = [row for row in own if row.difference is not None]
        if len(own) > 1:
            differences = [row.difference for row in own if row.difference is not None]
            mean = sum(row.record.score.score for row in own) / len(own)
            means.append(MeanRow(arm, len(own), mean, mean_difference(differences) if differences else None))
    return means
