"""Two runs: what is beyond noise is said, what does not compare is said too, and nonsense is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from bench.records.results import read_side
from bench.records.schema import PointRecord, Speed
from bench.records.task_schema import TaskRecord
from bench.reports.diff import RunDiff, diff
from mi_prun.errors import UserError

Point = Callable[..., PointRecord]
Save = Callable[..., str]


def against(a: str, b: str, **options: bool) -> RunDiff:
    return diff(read_side(a), read_side(b), **options)


def as_run(points: Sequence[PointRecord], name: str, **provenance: object) -> list[PointRecord]:
    return [
        point.model_copy(update={"run": name, "provenance": point.provenance.model_copy(update=provenance)})
        for point in points
    ]


def faster(point: PointRecord, times: float) -> PointRecord:
    rounds = tuple(
        changed.model_copy(update={"output_tokens_per_s": times * changed.output_tokens_per_s})
        for changed in point.speed.rounds
    )
    return point.model_copy(update={"speed": Speed(rounds=rounds)})


def test_the_same_figures_have_not_changed(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    changed = against(save(tmp_path / "a", one_sweep), save(tmp_path / "b", as_run(one_sweep, "run-2", commit="f00")))
    assert changed.beyond_noise == []
    assert changed.notes == ("commit 0123456789ab -> f00",)
    # Of four models: tokens/s, eight latencies, two sizes, RSS, two times of a start, perplexity; of three, two more.
    assert len(changed.changes) == 4 * 15 + 3 * 2
    assert "66 figures compared, 0 beyond noise; of the 39 with a 95 % interval about 2 " in changed.summary()


def test_a_speed_beyond_noise_and_one_within(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    a = save(tmp_path / "a", one_sweep)
    after = as_run(one_sweep, "run-2")
    after[1], after[2] = faster(after[1], 1.5), faster(after[2], 1.05)  # rounds of 95, 100, 110
    changed = against(a, save(tmp_path / "b", after))
    (change,) = changed.beyond_noise
    assert (change.arm, change.figure, change.better) == ("hybrid 12.5%", "tokens/s", True)
    assert change.change == pytest.approx(1.5)
    (within,) = (c for c in changed.changes if c.arm == "hybrid 25.0%" and c.figure == "tokens/s")
    assert within.low is not None
    assert within.high is not None
    assert within.low < 1 < 1.05 < within.high
    # The interval is Welch's, of the logarithms.
    logs = [[math.log(changed.output_tokens_per_s) for changed in side[2].speed.rounds] for side in (after, one_sweep)]
    interval = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert np.log([within.low, within.high]) == pytest.approx([interval.low, interval.high])


def test_a_speed_up_over_dense_is_compared_too(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    after = as_run(one_sweep, "run-2")
    paired = after[3].paired
    assert paired is not None
    slower = paired.output_tokens_per_s.model_copy(update={"ratio": 1.3, "low": 1.29, "high": 1.31})
    after[3] = after[3].model_copy(update={"paired": paired.model_copy(update={"output_tokens_per_s": slower})})
    (change,) = against(save(tmp_path / "a", one_sweep), save(tmp_path / "b", after)).beyond_noise
    assert (change.figure, change.better) == ("speed-up over dense", False)
    assert "1.5 -> 1.3, 0.867x [0.8" in change.line()
    assert change.line().endswith("worse")


def test_one_round_is_no_change_beyond_noise(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    def first_round(points: Sequence[PointRecord], times: float) -> list[PointRecord]:
        return [
            faster(point.model_copy(update={"speed": Speed(rounds=point.speed.rounds[:1])}), times) for point in points
        ]

    a = save(tmp_path / "a", first_round(one_sweep, 1))
    changed = against(a, save(tmp_path / "b", as_run(first_round(one_sweep, 2), "run-2")))
    assert changed.beyond_noise == []
    assert {c.low for c in changed.changes if c.figure == "tokens/s"} == {None}


def test_other_blocks_and_their_perplexity(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    after = as_run(one_sweep, "run-2")
    blocks = after[1].arm.blocks.model_copy(update={"dropped": (5,)})
    quality = after[1].quality
    assert quality is not None
    after[1] = after[1].model_copy(
        update={
            "arm": after[1].arm.model_copy(update={"blocks": blocks}),
            "quality": quality.model_copy(update={"pruned_perplexity": 55.0}),
        }
    )
    changed = against(save(tmp_path / "a", one_sweep), save(tmp_path / "b", after))
    (change,) = changed.beyond_noise
    assert (change.figure, change.before, change.after, change.better) == ("perplexity", 60.0, 55.0, True)
    assert "hybrid 12.5% drops other blocks: 3 -> 5" in changed.notes


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({"versions": {"vllm": "0.33.0", "torch": "2.13.0"}}, "another engine (vllm 0.32.0 -> 0.33.0)"),
        ({"serve_flags": ()}, "other flags of the server (--enforce-eager -> none)"),
        ({"environment": {"OMP_NUM_THREADS": "2"}}, "another environment (OMP_NUM_THREADS=1 -> 2)"),
        ({"engines_alive": "alone"}, "engines measured together -> alone"),
    ],
)
def test_speed_of_another_engine_is_not_compared_unless_asked(
    tmp_path: Path, one_sweep: list[PointRecord], provenance: dict[str, object], said: str, save: Save
) -> None:
    a = save(tmp_path / "a", one_sweep)
    b = save(tmp_path / "b", as_run([faster(point, 2) for point in one_sweep], "run-2", **provenance))
    changed = against(a, b)
    assert f"{said}: speed and memory are not compared" in changed.notes
    assert {change.figure for change in changed.changes} == {"perplexity", "KL to dense"}
    anyway = against(a, b, anyway=True)
    assert f"{said}: speed and memory are compared anyway" in anyway.notes
    assert {change.figure for change in anyway.beyond_noise} == {"tokens/s"}


def test_another_machine_and_other_text(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    machine = one_sweep[0].provenance.machine.model_copy(update={"cores": 64})
    after = [
        point.model_copy(update={"quality": point.quality.model_copy(update={"text": "other.txt"})})
        for point in as_run(one_sweep, "run-2", machine=machine)
        if point.quality
    ]
    with pytest.raises(UserError, match=r"nothing to compare: another machine \(AMD <EPYC>, 2 cores.*64 cores"):
        against(save(tmp_path / "a", one_sweep), save(tmp_path / "b", after))


def test_loads_that_are_not_in_both_are_named(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    other = one_sweep[0].load.model_copy(update={"concurrency": 64, "seed": 5})
    more = [point.model_copy(update={"load": other}) for point in one_sweep]
    a, b = save(tmp_path / "a", one_sweep), save(tmp_path / "b", as_run([*one_sweep, *more], "run-2"))
    assert against(a, b).notes == (f"loads only in {b}: chat, 64 in flight",)
    with pytest.raises(UserError, match="nothing to compare: loads only in"):
        against(a, save(tmp_path / "c", as_run(more, "run-3")))


def test_prompts_of_a_text_are_another_load_than_random_tokens(
    tmp_path: Path, one_sweep: list[PointRecord], save: Save
) -> None:
    texts = [
        point.model_copy(update={"load": point.load.model_copy(update={"text": "book.txt"})})
        for point in as_run(one_sweep, "run-2")
    ]
    with pytest.raises(UserError, match="nothing to compare: loads only in"):
        against(save(tmp_path / "a", one_sweep), save(tmp_path / "b", texts))


def test_tails_energy_start_up_and_what_the_device_held(
    tmp_path: Path, one_sweep: list[PointRecord], save: Save
) -> None:
    def other(point: PointRecord, times: float) -> PointRecord:
        rounds = tuple(
            result.model_copy(
                update={
                    "itl": result.itl.model_copy(update={"p99_ms": times * result.itl.p99_ms}),
                    "energy_j": times * (100 + number),
                }
            )
            for number, result in enumerate(point.speed.rounds)
        )
        memory = point.memory.model_copy(update={"peak_device_bytes": int(times * 2**30)})
        start_up = point.start_up.model_copy(update={"startup_s": 25.0 * times})
        assert point.quality is not None
        quality = point.quality.model_copy(update={"kl_nats_per_token": times * point.quality.kl_nats_per_token})
        changed = {"speed": Speed(rounds=rounds), "memory": memory, "start_up": start_up, "quality": quality}
        return point.model_copy(update=changed)

    before = [other(point, 1) for point in one_sweep[:2]]
    after = [other(point, 2) for point in as_run(one_sweep[:2], "run-2")]
    result = against(save(tmp_path / "a", before), save(tmp_path / "b", after))
    told = {(change.arm, change.figure): change for change in result.beyond_noise}
    figures = {"ITL p99 ms", "energy J a request", "start-up s", "peak device bytes"}
    assert set(told) == {(arm, figure) for arm in ("dense", "hybrid 12.5%") for figure in figures} | {
        ("hybrid 12.5%", "KL to dense")
    }
    for change in told.values():
        assert change.change == pytest.approx(2)
        assert change.better is False


def test_energy_is_of_a_request_and_quality_by_the_first_load_that_both_have(
    tmp_path: Path, one_sweep: list[PointRecord], save: Save
) -> None:
    """A round of twice the requests takes twice the energy; another first load is no reason to say nothing."""

    def of(point: PointRecord, requests: int, concurrency: int, perplexity: float = 1.0) -> PointRecord:
        rounds = tuple(
            changed.model_copy(update={"completed": requests, "energy_j": 10.0 * requests + number})
            for number, changed in enumerate(point.speed.rounds)
        )
        assert point.quality is not None
        quality = point.quality.model_copy(update={"pruned_perplexity": perplexity * point.quality.pruned_perplexity})
        load = point.load.model_copy(update={"prompts": requests, "concurrency": concurrency})
        return point.model_copy(update={"speed": Speed(rounds=rounds), "load": load, "quality": quality})

    before = [of(point, 32, concurrency) for concurrency in (1, 8) for point in one_sweep[:2]]
    after = [of(point, 64, 8, perplexity=1.5) for point in as_run(one_sweep[:2], "run-2")]
    changed = against(save(tmp_path / "a", before), save(tmp_path / "b", after))
    energy = [change for change in changed.changes if change.figure == "energy J a request"]
    assert [change.change for change in energy] == [pytest.approx(1, abs=0.02)] * 2
    worse = [(change.arm, change.change) for change in changed.beyond_noise if change.figure == "perplexity"]
    assert worse == [("dense", pytest.approx(1.5)), ("hybrid 12.5%", pytest.approx(1.5))]


def test_runs_and_commits_of_one_folder(tmp_path: Path, one_sweep: list[PointRecord], save: Save) -> None:
    newer = as_run([faster(point, 2) for point in one_sweep], "run-2", commit="beef00000000")
    folder = save(tmp_path / "a", [*one_sweep, *newer])
    for a, b in ((f"{folder}@run-1", folder), (f"{folder}@0123", f"{folder}@beef")):
        changed = against(a, b)
        assert [change.change for change in changed.beyond_noise] == pytest.approx([2] * 4)
    with pytest.raises(UserError, match="are the same run run-2"):
        against(folder, f"{folder}@beef")


def test_answers_are_paired_item_by_item(tmp_path: Path, task: Callable[..., TaskRecord], save: Save) -> None:
    before = task((3,), [True] * 40 + [False] * 40)
    after = task((3,), [True] * 20 + [False] * 60)
    a = save(tmp_path / "a", (), [task(), before])
    b = save(tmp_path / "b", (), [task(), after])
    (change,) = against(a, b).beyond_noise
    assert (change.figure, change.change, change.better) == ("task boolq acc", -0.25, False)
    assert "-0.250 [-0.3" in change.line()


def with_two_specs(record: Any, spec: str) -> Any:
    """The same record, of one of two specs of its method: the label says the folder, too."""
    arm = record.arm.model_copy(update={"label": f"{record.arm.label} ({spec})"})
    return record.model_copy(update={"arm": arm})


def test_models_of_one_method_are_paired_by_their_labels(
    tmp_path: Path, point: Point, task: Callable[..., TaskRecord], save: Save
) -> None:
    """As of --methods hybrid:24,hybrid:0; a third one, in B alone, has no pair."""
    first, second = with_two_specs(point((3,)), "24"), with_two_specs(faster(point((5,)), 2), "0")
    asked = [
        with_two_specs(task((3,), [True] * 40), "24"),
        with_two_specs(task((5,), [False] * 40), "0"),
    ]
    a = save(tmp_path / "a", [point(), first, second], asked)
    third = with_two_specs(faster(point((6,)), 4), "8")
    b = save(tmp_path / "b", as_run([point(), second, first, third], "run-2"), [*asked[::-1], task((6,))])
    changed = against(a, b)
    assert changed.beyond_noise == []
    assert changed.notes == ()
    arms = {"dense", first.arm.label, second.arm.label}
    assert {change.arm for change in changed.changes} == arms
    told = [change.arm for change in changed.changes if change.figure.startswith("task ")]
    assert told == [first.arm.label, second.arm.label]


def test_quality_on_other_passages_of_one_name_is_not_compared(
    tmp_path: Path, one_sweep: list[PointRecord], save: Save, judged_elsewhere: Callable[..., PointRecord]
) -> None:
    """As of `self`, sampled by another seed."""
    after = as_run([judged_elsewhere(point, "held-out.txt") for point in one_sweep], "run-2")
    changed = against(save(tmp_path / "a", one_sweep), save(tmp_path / "b", after))
    assert changed.beyond_noise == []
    assert not any(change.figure in ("perplexity", "KL to dense") for change in changed.changes)
    (note,) = changed.notes
    assert note.startswith("held-out.txt: the dense model's own perplexity is another (50 -> 40), so the passages or")


def healed_longer(record: TaskRecord) -> TaskRecord:
    healing = record.arm.healing
    assert healing is not None
    longer = record.arm.model_copy(update={"healing": healing.model_copy(update={"tokens": 900_000})})
    return record.model_copy(update={"arm": longer})


def test_a_healing_is_paired_with_the_same_one_where_there_are_several(
    tmp_path: Path, task: Callable[..., TaskRecord], save: Save
) -> None:
    asked = task((2, 3), [True] * 40, healed=True)
    other = healed_longer(task((2, 3), [False] * 40, healed=True))
    a = save(tmp_path / "a", (), [task(right=[True] * 40), asked])
    b = save(tmp_path / "b", (), [task(right=[True] * 40), asked, other])
    changed = against(a, b)
    assert [(change.arm, change.change) for change in changed.changes] == [("dense", 0.0), ("hybrid 25.0% healed", 0.0)]


def test_answers_of_another_healing_are_compared_and_it_is_said(
    tmp_path: Path, task: Callable[..., TaskRecord], save: Save
) -> None:
    a = save(tmp_path / "a", (), [task(), task((2, 3), [True] * 40, healed=True)])
    b = save(tmp_path / "b", (), [task(), healed_longer(task((2, 3), [False] * 40, healed=True))])
    changed = against(a, b)
    assert len(changed.beyond_noise) == 1
    (note,) = changed.notes
    assert note.startswith("hybrid 25.0% healed is healed otherwise: 100,000 tokens of wiki.txt, seed 3 -> 900,000")
