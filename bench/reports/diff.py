"""`mi-prun-bench diff A B`: say what changed between two runs, beyond noise.

Speeds have rounds on either side. They are not pairs, so the interval is Welch's, of the mean logarithms. What a
machine did differently on the two days is in that figure too. Beside it stands the change of the speed-up over the
dense model of the same run, in which it is not. Perplexity, bytes and tokens have no noise where machine and engine are
the same. Answers to tasks are pairs, item by item.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import mean, variance

from bench.records.comparable import Comparable, comparable, protocol_of, same_text, workload_key
from bench.records.paired import CONFIDENCE
from bench.records.results import Run, Side
from bench.records.schema import MeasuredArm, PointRecord, Ratio, Round, Workload
from bench.records.task_schema import TaskRecord
from bench.records.task_summary import comparable_answers, difference_of, healed_words
from mi_prun.artefact import Record
from mi_prun.errors import UserError

SAME = 1e-3  # of figures that have no noise: a smaller change is a matter of rounding
# One sample a run, no interval: a smaller relative change is not told.
SHARE_OF_PEAK = 0.05
SHARE_OF_START = 0.25
LATENCIES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("end to end", "e2e"))


class RunChange(Record):
    """A figure of B against A.

    change: B over A; for tasks B minus A. low, high: its 95 % interval; None for an exact figure. beyond_noise: the
    interval leaves out no change, or an exact figure is another. better: None where it is not beyond noise.
    """

    arm: str
    load: str | None
    figure: str
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    beyond_noise: bool
    better: bool | None

    def line(self) -> str:
        """Return the change for a terminal."""
        where = f"{self.arm}, {self.load}" if self.load else self.arm
        form = "+.3f" if self.figure.startswith("task ") else ".3f"
        width = "" if self.low is None or self.high is None else f" [{self.low:{form}}, {self.high:{form}}]"
        verdict = {True: "better", False: "worse", None: "within noise"}[self.better]
        unit = "" if form == "+.3f" else "x"
        figures = f"{self.figure} {self.before:,.6g} -> {self.after:,.6g}"
        return f"{where}: {figures}, {self.change:{form}}{unit}{width} {verdict}"


@dataclass(frozen=True)
class RunDiff:
    """What changed between two runs. notes: what is not compared and why, and what else differs."""

    changes: tuple[RunChange, ...]
    notes: tuple[str, ...]

    @property
    def beyond_noise(self) -> list[RunChange]:
        """The changes that are more than noise."""
        return [change for change in self.changes if change.beyond_noise]

    def summary(self) -> str:
        """Say how many figures were compared, and how many would be beyond noise by chance alone."""
        measured = sum(change.low is not None for change in self.changes)
        return (
            f"{len(self.changes)} figures compared, {len(self.beyond_noise)} beyond noise; of the {measured} with a "
            f"95 % interval about {measured * (1 - CONFIDENCE):.0f} would be by chance alone"
        )


def diff(a: Side, b: Side, *, anyway: bool = False) -> RunDiff:
    """Compare every figure of models and loads that A and B have in common.

    anyway: speed and memory too, though the machines or the engines differ. Raises UserError where nothing compares.
    """
    may = comparable(a, b, anyway=anyway)
    changes: list[RunChange] = []
    notes = list(may.notes)
    if a.run and b.run:
        changes += _runs(a.run, b.run, may)
        notes += _other_passages(a.run, b.run) if may.quality else ()
        arms = [(before.arm, after.arm) for before, after in _pairs(a.run, b.run)]
        notes += dict.fromkeys(_other_models(arms))
    if may.quality:
        asked = _task_pairs(a.tasks, b.tasks)
        changes += [_task_change(before, after) for before, after in asked]
        other = dict.fromkeys(_other_models([(before.arm, after.arm) for before, after in asked]))
        notes += [note for note in other if note not in notes]
    if not changes:
        reason = "; ".join(notes) or "no model and load, and no task, is in both"
        raise UserError(f"{a.name} and {b.name} have nothing to compare: {reason}")
    return RunDiff(tuple(changes), tuple(notes))


def _other_models(pairs: Iterable[tuple[MeasuredArm, MeasuredArm]]) -> Iterator[str]:
    for before, after in pairs:
        if before.blocks.dropped != after.blocks.dropped:
            ours, theirs = (", ".join(map(str, arm.blocks.dropped)) for arm in (before, after))
            yield f"{before.label} drops other blocks: {ours} -> {theirs}"
        if before.healing != after.healing:
            ours, theirs = (_healed_on(arm) for arm in (before, after))
            yield f"{before.label} is healed otherwise: {ours} -> {theirs}"


def _other_passages(a: Run, b: Run) -> list[str]:
    """Say where quality goes by one name and protocol, but the dense model's own figure says that the text is another.

    The two runs have one dense model.
    """
    for before, after in _pairs(a, b):
        if protocol_of(before) and protocol_of(before) == protocol_of(after) and not same_text(before, after):
            assert before.quality is not None
            assert after.quality is not None
            ours, theirs = (quality.dense_perplexity for quality in (before.quality, after.quality))
            return [
                f"{before.quality.text}: the dense model's own perplexity is another ({ours:.5g} -> {theirs:.5g}), so "
                "the passages or the number format are: quality is not compared"
            ]
    return []


def _healed_on(arm: MeasuredArm) -> str:
    return "not" if arm.healing is None else healed_words(arm.healing)


def _runs(a: Run, b: Run, may: Comparable) -> Iterator[RunChange]:
    told: set[str] = set()
    for before, after in _pairs(a, b):
        if before.arm.label not in told:  # by the first load that both have
            told.add(before.arm.label)
            yield from _once(before, after, may)
        if may.speed:
            yield from _speeds(before, after)


def _pairs(a: Run, b: Run) -> Iterator[tuple[PointRecord, PointRecord]]:
    """Yield points of models that are compared with each other, under the same load."""
    name = _naming(a.arms, b.arms)

    def key(arm: MeasuredArm, load: Workload) -> tuple[object, ...]:
        return *name(arm), workload_key(load)

    theirs = {key(point.arm, point.load): point for point in b.points}
    for load in a.loads:
        for point in a.under(load):
            if (other := theirs.get(key(point.arm, load))) is not None:
                yield point, other


def _naming(a: Iterable[MeasuredArm], b: Iterable[MeasuredArm]) -> Callable[[MeasuredArm], tuple[object, ...]]:
    """Return what gives a model of one side the name by which it is compared with one of the other.

    It is the model's place; with its label where one side has several models there, as of two specs of one method; with
    all that tells it from others where those have one label, as of two healings.
    """
    ways: list[Callable[[MeasuredArm], tuple[object, ...]]] = [
        _place,
        lambda arm: (*_place(arm), arm.label),
        lambda arm: (*_place(arm), arm.label, arm.identity),
    ]
    sides = [list(side) for side in (a, b)]
    shared: set[tuple[object, ...]] = set()
    for way in ways[:-1]:
        for side in sides:
            held = Counter(short for short, *_ in {(way(arm), arm.label, arm.identity) for arm in side})
            shared |= {short for short, models in held.items() if models > 1}

    def name(arm: MeasuredArm) -> tuple[object, ...]:
        return next(short for way in ways if (short := way(arm)) not in shared)

    return name


def _place(arm: MeasuredArm) -> tuple[object, ...]:
    """Return kind, method, number of blocks and way of healing: not a model's very blocks, text or tokens."""
    return arm.kind, arm.blocks.method, len(arm.blocks.dropped), arm.healing and arm.healing.method


def _once(before: PointRecord, after: PointRecord, may: Comparable) -> Iterator[RunChange]:
    """Yield the changes of what a model has under any load."""
    if may.speed:
        first, second = before.memory, after.memory
        yield _exact(before.arm, "weight bytes", first.weight_bytes, second.weight_bytes, more=False)
        yield _exact(before.arm, "KV tokens", first.kv_tokens, second.kv_tokens, more=True)
        sampled = [
            ("peak RSS bytes", first.peak_rss_bytes, second.peak_rss_bytes, SHARE_OF_PEAK),
            ("peak device bytes", first.peak_device_bytes, second.peak_device_bytes, SHARE_OF_PEAK),
            ("start-up s", before.start_up.startup_s, after.start_up.startup_s, SHARE_OF_START),
            ("weight loading s", before.start_up.load_s, after.start_up.load_s, SHARE_OF_START),
        ]
        for figure, was, becomes, least in sampled:
            if was is not None and becomes is not None:
                yield _exact(before.arm, figure, was, becomes, more=False, least=least)
    if may.quality and before.quality and after.quality and same_text(before, after):
        ours, theirs = before.quality, after.quality
        yield _exact(before.arm, "perplexity", ours.pruned_perplexity, theirs.pruned_perplexity, more=False)
        if before.arm.kind != "dense":
            yield _exact(before.arm, "KL to dense", ours.kl_nats_per_token, theirs.kl_nats_per_token, more=False)


def _speeds(before: PointRecord, after: PointRecord) -> Iterator[RunChange]:
    def rounds(of: Callable[[Round], float]) -> tuple[list[float], list[float]]:
        return [of(each) for each in before.speed.rounds], [of(each) for each in after.speed.rounds]

    yield _noisy(before, "tokens/s", *rounds(lambda each: each.output_tokens_per_s), more=True)
    for title, name in LATENCIES:
        for percentile in ("p50", "p99"):
            of = attrgetter(f"{name}.{percentile}_ms")
            first, second = rounds(of)
            if min(*first, *second) > 0:
                yield _noisy(before, f"{title} {percentile} ms", first, second, more=False)
    first, second = rounds(lambda each: (each.energy_j or 0.0) / each.completed)
    if min(*first, *second) > 0:
        yield _noisy(before, "energy J a request", first, second, more=False)
    if before.paired and after.paired:
        ours, theirs = before.paired.output_tokens_per_s, after.paired.output_tokens_per_s
        yield _change_of_ratio(before, ours, theirs)


def _exact(arm: MeasuredArm, figure: str, before: float, after: float, *, more: bool, least: float = SAME) -> RunChange:
    """Return the change of a figure that has no noise.

    more: whether more of it is better. least: a smaller relative change is none.
    """
    change = after / before if before else 1.0
    changed = abs(change - 1) > least
    return RunChange(
        arm=arm.label,
        load=None,
        figure=figure,
        before=before,
        after=after,
        change=change,
        low=None,
        high=None,
        beyond_noise=changed,
        better=(change > 1) == more if changed else None,
    )


def _noisy(
    point: PointRecord, figure: str, before: Sequence[float], after: Sequence[float], *, more: bool
) -> RunChange:
    logs = [[math.log(value) for value in side] for side in (before, after)]
    spreads = [(variance(side) / len(side) if len(side) > 1 else None, len(side)) for side in logs]
    return _with_interval(point, figure, [math.exp(mean(side)) for side in logs], spreads, more=more)


def _change_of_ratio(point: PointRecord, before: Ratio, after: Ratio) -> RunChange:
    """Return the change of a speed-up. Its intervals are Student's t of log ratios; standard errors are read back."""
    from scipy.stats import t

    def spread(ratio: Ratio) -> tuple[float | None, int]:
        if ratio.low is None or ratio.high is None or ratio.pairs < 2:
            return None, ratio.pairs
        half = math.log(ratio.high / ratio.low) / 2
        return (half / float(t.ppf(0.5 + CONFIDENCE / 2, ratio.pairs - 1))) ** 2, ratio.pairs

    figures = [before.ratio, after.ratio]
    return _with_interval(point, "speed-up over dense", figures, [spread(before), spread(after)], more=True)


def _with_interval(
    point: PointRecord, figure: str, means: Sequence[float], spreads: Sequence[tuple[float | None, int]], *, more: bool
) -> RunChange:
    """Return a change with Welch's t interval of the difference of two mean logarithms.

    spreads: squared standard error, and of how many. (scipy gives this interval for samples only, and a speed-up's are
    not kept.)
    """
    from scipy.stats import t

    before, after = means
    (first, count), (second, other_count) = spreads
    low = high = None
    if first is not None and second is not None:
        error2 = first + second
        parts = first**2 / (count - 1) + second**2 / (other_count - 1)
        freedom = error2**2 / parts if parts else math.inf
        half = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(error2)
        low, high = after / before * math.exp(-half), after / before * math.exp(half)
    changed = low is not None and high is not None and not low <= 1 <= high
    return RunChange(
        arm=point.arm.label,
        load=point.load.label,
        figure=figure,
        before=before,
        after=after,
        change=after / before,
        low=low,
        high=high,
        beyond_noise=changed,
        better=(after > before) == more if changed else None,
    )


def _task_pairs(a: Sequence[TaskRecord], b: Sequence[TaskRecord]) -> list[tuple[TaskRecord, TaskRecord]]:
    """Return the newest records of models that are compared with each other, on the same items."""
    name = _naming((record.arm for record in a), (record.arm for record in b))

    def key(record: TaskRecord) -> tuple[object, ...]:
        return *name(record.arm), record.score.task

    theirs = {key(record): record for record in b}
    pairs = [(record, theirs.get(place)) for place, record in {key(record): record for record in a}.items()]
    return [(first, second) for first, second in pairs if second is not None and comparable_answers(first, second)]


def _task_change(before: TaskRecord, after: TaskRecord) -> RunChange:
    difference = difference_of(before, after)
    return RunChange(
        arm=before.arm.label,
        load=None,
        figure=f"task {before.score.task} {before.score.metric}",
        before=before.score.score,
        after=after.score.score,
        change=difference.mean,
        low=difference.low,
        high=difference.high,
        beyond_noise=difference.beyond_noise,
        better=difference.mean > 0 if difference.beyond_noise else None,
    )
