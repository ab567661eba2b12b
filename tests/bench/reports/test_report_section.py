"""The sections of the report: which there are, what each says first, and what stands under it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.records.results import Results, Run
from bench.records.schema import HealedBy, PointRecord, Ratio, Selection, Speed
from bench.records.task_schema import GenerationRecord, TaskRecord
from bench.records.task_summary import mean_rows, task_rows
from bench.reports import report_section
from bench.reports.report_section import Section, headline, sections, tasks_headline

Point = Callable[..., PointRecord]
Task = Callable[..., TaskRecord]
Generation = Callable[..., GenerationRecord]
HEALED_LONGER = HealedBy(method="fit + lora", text="wiki.txt", tokens=900_000, fit_tokens=16_384, seed=3)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures are not drawn; the ones that are there without tasks are."""
    for name, svg in (("pareto", "<svg/>"), ("roofline", "<svg/>"), ("memory", "<svg/>"), ("tasks", "")):
        monkeypatch.setattr(report_section, f"{name}_svg", lambda *given, svg=svg: svg)


def section_of(*points: PointRecord) -> Section:
    (section,) = sections(Results((Run("run-1", points),), (), ()))
    return section


def draft_of(point: PointRecord, times: float, label: str) -> PointRecord:
    assert point.paired is not None
    ratio = Ratio(ratio=times, low=times - 0.1, high=times + 0.1, pairs=3)
    paired = point.paired.model_copy(update={"output_tokens_per_s": ratio})
    return point.model_copy(update={"paired": paired, "arm": point.arm.model_copy(update={"label": label})})


def test_a_headline_within_noise_says_so(point: Point) -> None:
    def between(low: float | None, high: float | None) -> str:
        shown = point((3,))
        assert shown.paired is not None
        wide = Ratio(ratio=1.12, low=low, high=high, pairs=3)
        paired = shown.paired.model_copy(update={"output_tokens_per_s": wide})
        return headline(Run("run-1", (point(), shown.model_copy(update={"paired": paired}))))

    assert "1.12× tokens/s [0.90, 1.40] (not beyond noise)" in between(0.9, 1.4)
    assert "1.12× tokens/s [1.05, 1.20], " in between(1.05, 1.2)
    assert "1.12× tokens/s (one round)" in between(None, None)


def test_the_headline_takes_the_largest_ratio_at_a_fair_price(one_sweep: list[PointRecord], point: Point) -> None:
    assert headline(Run("run-1", tuple(one_sweep))).startswith("12.5% of blocks gone")
    blind = Run("run-1", (point(), point((1, 2), quality=None, quality_measured_on=None)))
    assert headline(blind).endswith("1.33× KV tokens")
    assert headline(Run("run-1", (point(),))) == "Only the dense model was measured."


def test_of_two_sets_of_as_many_blocks_the_headline_takes_the_better_one(point: Point) -> None:
    def judged(dropped: tuple[int, ...], perplexity: float) -> PointRecord:
        quality = point(dropped).quality
        assert quality is not None
        made = point(dropped, quality=quality.model_copy(update={"pruned_perplexity": perplexity}))
        label = f"{perplexity:g}"
        return made.model_copy(update={"arm": made.arm.model_copy(update={"label": label})})

    run = Run("run-1", (point(), judged((1, 2), 62.5), judged((2, 3), 61.0), judged((4, 5, 6), 62.6)))
    assert headline(run).endswith("perplexity 50.0 → 61.0")  # 62.5 is a quarter more than 50, and no more
    worse = Run("run-1", (point(), judged((1, 2), 99.0), judged((4,), 99.0), judged((3,), 98.0)))
    assert headline(worse).endswith("perplexity 50.0 → 98.0")
    assert headline(worse).startswith("12.5% of blocks gone")  # none is fair: the smallest ratio


def test_drafts_alone_are_headed_by_the_fastest(point: Point) -> None:
    drafts = [draft_of(point((3,), kind="draft"), times, f"draft {times}") for times in (1.2, 1.4, 1.3)]
    assert headline(Run("run-1", (point(), *drafts))) == (
        "draft 1.4: 1.40× tokens/s [1.30, 1.50], the dense model's own answers"
    )


def test_tasks_are_headed_by_the_smallest_model(task: Task) -> None:
    def means(*dropped: tuple[int, ...]) -> str:
        records = [task(blocks, task=name) for name in ("boolq", "piqa") for blocks in dropped]
        return tasks_headline(mean_rows(task_rows(records)))

    assert means((2, 3), (), (3,)).startswith("25% of blocks gone: +0.0 points of right answers [-")
    assert means((2, 3), ()).endswith("] on 2 tasks")
    assert means(()) == tasks_headline([]) == "Tasks and continuations; nothing was measured under load."


@pytest.mark.usefixtures("undrawn")
def test_what_a_model_was_asked_stands_in_its_newest_run_only(
    one_sweep: list[PointRecord], task: Task, generation: Generation
) -> None:
    runs = tuple(Run(name, tuple(point.model_copy(update={"run": name}) for point in one_sweep)) for name in "ba")
    first, second = sections(Results(runs, (task(),), (generation((), "a"),)))
    for section, there in ((first, True), (second, False)):
        assert ("Tasks" in [table.title for table in section.tables]) == there
        assert [prompt.prompt for prompt in section.prompts] == ["Once <upon>"] * there
        assert {"Tasks", "Log-probabilities", "Continuations"} <= {name for name, _ in section.footers} or not there
    assert first.about == f"Every ratio is to the dense model of the same run, {first.time}."
    assert first.time == "2026-11-25 05:15 UTC"


@pytest.mark.usefixtures("undrawn")
def test_models_that_were_asked_only_follow_the_newest_first(
    one_sweep: list[PointRecord], task: Task, generation: Generation
) -> None:
    def of(name: str, digit: str) -> dict[str, object]:
        return {"dense": task().dense.model_copy(update={"name": name, "weights_sha256": digit * 64})}

    continued = generation((), "a").model_copy(update=of("/models/third", "7"))
    results = Results(
        (Run("run-1", tuple(one_sweep)),), (task(**of("first", "8")), task(), task(**of("second", "9"))), (continued,)
    )
    shown = sections(results)
    assert [section.title for section in shown] == ["owner/dense", "third", "second", "first"]
    assert shown[2].about == "Asked 2026-11-25 06:00 UTC, not loaded."
    assert (shown[1].tables, [arm.label for arm in shown[1].arms]) == ((), ["dense"])
    assert "Load" not in dict(shown[2].footers)


@pytest.mark.usefixtures("undrawn")
def test_a_shape_goes_by_its_name(point: Point) -> None:
    dense = point().dense.model_copy(update={"shape": "qwen", "weights_sha256": None})
    section = section_of(point(dense=dense))
    assert section.title == "qwen"
    assert section.notes[0].startswith("The weights are random: qwen is a shape")


@pytest.mark.usefixtures("undrawn")
def test_the_answers_to_a_prompt_stand_by_blocks_dropped_and_the_newest_counts(
    task: Task, generation: Generation
) -> None:
    written = (
        generation((2, 3), " old "),
        generation((3,), "one"),
        generation((), "none"),
        generation((2, 3), " two "),
    )
    (section,) = sections(Results((), (), written))
    (prompt,) = section.prompts
    assert prompt.answers == (("dense", "none"), ("hybrid 12.5%", "one"), ("hybrid 25.0%", "two"))
    assert dict(section.footers)["Continuations"] == "temperature 0.7, seed 0, 16 tokens at most"


@pytest.mark.usefixtures("undrawn")
def test_few_rounds_are_counted_in_words(point: Point) -> None:
    def notes(count: int) -> tuple[str, ...]:
        return section_of(point(speed=Speed(rounds=point().speed.rounds[:count]))).notes

    assert notes(1) == ("Measured in 1 round: fewer than 3 rounds tell little.",)
    assert notes(2) == ("Measured in 2 rounds: fewer than 3 rounds tell little.",)
    assert notes(3) == ()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("mib", "said"), [(200, True), (201, False)])
def test_where_a_step_costs_more_than_the_weights_it_is_said(point: Point, mib: int, said: bool) -> None:
    memory = point().memory.model_copy(update={"weight_bytes": mib << 20})
    notes = section_of(point(memory=memory)).notes
    assert any(note.startswith(f"The dense model has only {mib} MiB") for note in notes) == said


@pytest.mark.usefixtures("undrawn")
def test_footers_say_what_the_figures_depend_on(one_sweep: list[PointRecord]) -> None:
    footers = dict(section_of(*one_sweep).footers)
    assert footers["Load"].startswith(
        "vllm bench serve: chat, 4 in flight; 32 requests a round of the first, 4 before it not"
    )
    assert "dense and pruned in turn, 3 rounds, engines side by side" in footers["Load"]
    assert footers["Quality"].endswith(
        "2,044 predicted tokens, non-overlapping windows of 512 tokens; measured on the dense model with blocks skipped"
    )
    assert footers["Sweep"] == "ratios 0,.125,.25,.5"  # what was not asked for is left out
    assert footers["Server"] == "mi-prun-serve --enforce-eager; OMP_NUM_THREADS=1"
    assert footers["Run"] == "run-1, 2026-11-25T05:15:33+00:00, commit 0123456789ab, seed 0"
    assert "Trace" not in footers


@pytest.mark.usefixtures("undrawn")
def test_footers_of_a_dense_model_alone(point: Point) -> None:
    given = point().provenance.model_copy(
        update={"serve_flags": (), "environment": {}, "commit": None, "engines_alive": "alone", "sweep": {}}
    )
    footers = dict(section_of(point(provenance=given)).footers)
    assert (footers["Quality"], footers["Selection"]) == ("not measured", "nothing pruned")
    assert (footers["Server"], "Sweep" in footers) == ("mi-prun-serve", False)
    assert "commit unknown" in footers["Run"]
    assert "engines started anew each round" in footers["Load"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("reranks", "said"),
    [
        ((24, 30), "24 to 30 candidates compared by their loss"),
        ((24, 24), "24 candidates compared by their loss"),
        ((0, 0), "no candidates compared"),
        ((None, None), ""),
    ],
)
def test_a_selection_says_how_many_candidates_were_compared(
    point: Point, reranks: tuple[int | None, ...], said: str
) -> None:
    chosen = [
        point(dropped, selection=Selection(plan_sha256="4" * 64, settings={"rerank": rerank}))
        for dropped, rerank in zip(((3,), (2, 3)), reranks, strict=True)
    ]
    assert dict(section_of(point(), *chosen).footers)["Selection"] == ", ".join(filter(None, ("hybrid", said)))


def test_pictures_that_show_nothing_are_left_out(one_sweep: list[PointRecord], point: Point) -> None:
    titles = [picture.title for picture in section_of(*one_sweep).pictures]
    assert titles == ["Quality against speed", "Block map", "Roofline efficiency", "Memory"]
    alone = {picture.title for picture in section_of(point()).pictures}
    assert not {"Quality against speed", "Roofline efficiency", "Tasks against dense"} & alone


@pytest.mark.usefixtures("undrawn")
def test_a_wide_block_map_stands_last(point: Point) -> None:
    def with_blocks(count: int) -> Section:
        shown = [point(), point((3,))]
        return section_of(
            *(
                each.model_copy(
                    update={
                        "arm": each.arm.model_copy(
                            update={"blocks": each.arm.blocks.model_copy(update={"num_blocks": count})}
                        )
                    }
                )
                for each in shown
            )
        )

    for count, wide in ((32, False), (33, True)):
        pictures = with_blocks(count).pictures
        place, (block_map,) = (
            [picture.title for picture in pictures].index("Block map"),
            [picture for picture in pictures if picture.title == "Block map"],
        )
        assert block_map.wide == wide
        assert (place == len(pictures) - 1) == wide


@pytest.mark.usefixtures("undrawn")
def test_perplexities_of_several_texts_are_noted(
    one_sweep: list[PointRecord], judged_elsewhere: Callable[..., PointRecord]
) -> None:
    assert not any("texts" in note for note in section_of(*one_sweep).notes)
    notes = section_of(*one_sweep[:-1], judged_elsewhere(one_sweep[-1])).notes
    assert any(note.startswith("Perplexity was measured on 2 texts (Quality, below)") for note in notes)


def test_answers_of_another_engine_than_the_dense_models_are_noted(task: Task) -> None:
    elsewhere = task().provenance.model_copy(update={"versions": {"vllm": "0.33.0"}, "engines_alive": "alone"})
    (section,) = sections(Results((), (task(), task((3,), provenance=elsewhere), task((2, 3))), ()))
    (note,) = (note for note in section.notes if "conditions" in note)
    assert "hybrid 12.5%: another engine (vllm 0.32.0 -> 0.33.0); hybrid 12.5%: another engine (torch" in note
    assert "25.0%" not in note
    assert "alone" not in note  # which engines live beside an engine changes no answer


def test_models_of_one_label_are_named_apart_where_nothing_was_loaded(task: Task) -> None:
    records = [task(), task((2, 3), healed=True)]
    other = records[1].arm.model_copy(update={"healing": HEALED_LONGER})
    (section,) = sections(Results((), (*records, records[1].model_copy(update={"arm": other})), ()))
    assert [arm.label for arm in section.arms] == [
        "dense",
        "hybrid 25.0% healed (100,000 tokens of wiki.txt, seed 3)",
        "hybrid 25.0% healed (900,000 tokens of wiki.txt, seed 3)",
    ]
