"""What a sweep will be, said before it is made; and what it makes once only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from bench.engines import memory_check
from bench.models import measured_model
from bench.settings import MeasureSettings, WorkloadSettings
from bench.sweeps import measure as measuring
from bench.sweeps import sweep as sweeping
from bench.sweeps.dry_run import describe
from bench.sweeps.sweep import prepare_shape, prepare_sweep, pruned_folders, sweep, sweep_shape
from bench.sweeps.sweep_settings import SweepSettings
from bench.tasks.task_settings import TaskSettings
from bench.tasks.task_table import parse_tasks
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan
from mi_prun.settings import AnalyzeSettings, HealSettings

SETTINGS = SweepSettings(
    ratios="0,.25,.5",
    methods="bi:0",
    analyze=AnalyzeSettings(scoring_tokens=64, ranking_tokens=64, held_out_tokens=64, window_tokens=32),
    measure=MeasureSettings(WorkloadSettings(presets=("balanced", "decode-heavy"), rates=(0.5, 2.0)), alive="alone"),
)
# Of a shape no block is chosen.
SHAPE = SweepSettings(ratios=SETTINGS.ratios, measure=SETTINGS.measure)


def prompts_from(folder: Path, settings: MeasureSettings) -> MeasureSettings:
    """The same, with prompts that are pieces of a text, as a draft needs them."""
    folder.mkdir(exist_ok=True)
    path = folder / "text.txt"
    path.write_text("Once upon a time a cat sat on a mat and looked at the rain. " * 20_000)
    return replace(settings, loads=replace(settings.loads, text=str(path)))


def test_what_can_be_known_to_be_wrong_is_said_first(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(reference)
    for fields, said in (
        ({"methods": "magic"}, "magic"),
        ({"ratios": "2"}, "--ratios"),
        ({"draft": True}, "--draft needs --text: random tokens cannot be predicted by a draft"),
        ({"measure": MeasureSettings(WorkloadSettings(presets=("prefill-heavy",)))}, "a context of 512; ask for less"),
    ):
        with pytest.raises(UserError, match=said):
            prepare_sweep(model, replace(SETTINGS, **fields))
    asked = TaskSettings(tuple(parse_tasks("boolq")))
    for fields, option in (
        ({"draft": True}, "--draft"),
        ({"quality_text": "x"}, "--quality-text"),
        ({"tasks": asked}, "--tasks"),
        ({"methods": "nonsense"}, "--methods"),
        ({"analyze": AnalyzeSettings(sources=("missing.txt",))}, "--calibration"),
        ({"analyze": AnalyzeSettings(scoring_tokens=-5)}, "--tokens"),
        ({"materialise": True}, "--no-virtual"),
    ):
        with pytest.raises(UserError, match=f"{option} does not go with --shape: .*; leave it out"):
            prepare_shape("qwen3-0.6b", tmp_path, replace(SHAPE, **fields))
    monkeypatch.setattr(memory_check.psutil, "virtual_memory", lambda: type("M", (), {"available": 2**33}))
    with pytest.raises(UserError, match=r"too little memory for dense: its weights \(14\.96 GiB\)"):
        prepare_shape("llama-3.1-8b", tmp_path, SHAPE)


def test_tasks_that_cannot_be_asked_are_said_first(reference: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    short = replace(SETTINGS.measure, serve_flags=("--max_model_len=400",))
    for asked, measure, said in (
        (TaskSettings(tuple(parse_tasks("boolq")), tmp_path), SETTINGS.measure, "has no boolq.jsonl"),
        (TaskSettings(tuple(parse_tasks("boolq")), limit=0), SETTINGS.measure, "--task-limit must be at least 1"),
        (TaskSettings(tuple(parse_tasks("gsm8k"))), short, "gsm8k needs a context of 512 tokens, .* served with 400"),
    ):
        with pytest.raises(UserError, match=said):
            sweep(str(reference), tmp_path / "out", replace(SETTINGS, tasks=asked, measure=measure))
    assert not (tmp_path / "out").exists()


def test_after_the_points_the_models_are_asked(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: Callable[..., Any]
) -> None:
    pytest.importorskip("lm_eval")
    done: list[Any] = []

    def measured(prepared: Any, folder: Any) -> list[Any]:
        done.append([model.arm.kind for model in prepared.models.all])
        done.append(prepared.sweep)
        return [point()]

    def ask(asked: Any, folder: Any, settings: TaskSettings, *, again: bool) -> list[Any]:
        done.append([(one.name, one.model.arm.kind) for one in asked])
        done.append((settings.serve_flags, again))
        return []

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: (done.append(name), real(*given))[1])

    monkeypatch.setattr(sweeping, "measure", measured)
    monkeypatch.setattr(sweeping, "ask", ask)
    counted(measured_model, "open_model")
    counted(measuring, "lengths_of")
    counted(measuring, "text_prompts")
    asked = TaskSettings(tuple(parse_tasks("boolq")))
    few = WorkloadSettings(concurrency=(1,), prompts=2, rounds=1)
    measure = prompts_from(tmp_path / "text", replace(SETTINGS.measure, loads=few))
    short = replace(measure, serve_flags=("--max-model-len", "512"))
    out = tmp_path / "out"
    points, answers = sweep(
        str(reference), out, replace(SETTINGS, ratios=".25", draft=True, tasks=asked, measure=short)
    )
    assert (len(points), answers) == (1, [])
    (checkpoint,) = map(str, (out / "checkpoints").glob("bi-0-3-*-virtual"))
    assert done == [
        "open_model",  # once, though the sweep prunes it, measures it and asks it
        "lengths_of",
        "text_prompts",
        ["dense", "pruned", "draft"],
        {
            "ratios": ".25",
            "methods": "bi:0",
            "calibration": "self",
            "scoring_tokens": 64,
            "materialise": False,
            "quality_text": None,
            "seed": 0,
        },
        [(str(reference), "dense"), (checkpoint, "pruned")],  # the draft answers as the dense model does
        (("--max-model-len", "512"), False),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "nope"], "--tasks 'nope': there is no task 'nope'; the known ones are arc_easy"),
        (["--tasks", "boolq", "--task-limit", "0"], "--task-limit must be at least 1, got 0"),
        (["--task-limit", "5"], "--tasks-from and --task-limit go with --tasks"),
        (["--tasks", "default", "--tasks-from", "."], "--tasks-from . has none of boolq.jsonl"),
        (["--heal", "soon"], "--heal must be `fit`, a time over 0 like 10min or 1h, or tokens"),
        (["--heal-text", "self"], "--heal-text goes with --heal"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_the_commands_errors(reference: Path, refusal: Callable[..., str], words: list[str], said: str) -> None:
    assert refusal("sweep", "--dense", reference, "-o", "out", *words).startswith(f"error: {said}")


def test_the_context_is_no_longer_than_need_be(tmp_path: Path, tiny: Callable[..., Path], reference: Path) -> None:
    flags = prepare_shape("qwen3-0.6b", tmp_path, SHAPE).settings.serve_flags
    assert flags == ("--max-model-len", "4096")
    given = replace(SETTINGS.measure, serve_flags=("--max-model-len=512",))
    assert prepare_shape("qwen3-0.6b", tmp_path, replace(SHAPE, measure=given)).settings.serve_flags == (
        "--max-model-len=512",
    )
    long = replace(SETTINGS.measure, loads=replace(SETTINGS.measure.loads, input_tokens=8000, output_tokens=100))
    assert prepare_shape("qwen3-0.6b", tmp_path, replace(SHAPE, measure=long)).settings.serve_flags[-1] == "8100"
    assert prepare_sweep(str(reference), SETTINGS).settings.serve_flags == ()  # 512 tokens are few


def test_a_shape_by_its_config(tmp_path: Path, dense: Path) -> None:
    measure = MeasureSettings(WorkloadSettings(input_tokens=8, output_tokens=4), alive="alone")
    prepared = prepare_shape(str(dense / "config.json"), tmp_path, replace(SHAPE, measure=measure))
    assert prepared.models.dense.shape == "config"
    assert [model.arm.blocks.dropped for model in prepared.models.all] == [(), (2,), (1, 3)]
    assert [model.arm.label for model in prepared.models.all] == ["dense", "25.0% dropped", "50.0% dropped"]
    assert prepared.models.all[0].weight_bytes == open_model(dense).weight_bytes
    assert prepared.models.all[1].flags[:2] == ("--load-format", "dummy")


def test_a_shape_has_the_whole_name_of_its_folder(tmp_path: Path, dense: Path) -> None:
    folder = tmp_path / "Llama-3.1-8B"
    folder.mkdir()
    (folder / "config.json").write_bytes((dense / "config.json").read_bytes())
    measure = MeasureSettings(WorkloadSettings(input_tokens=8, output_tokens=4), alive="alone")
    prepared = prepare_shape(str(folder), tmp_path, replace(SHAPE, measure=measure))
    assert prepared.models.dense.shape == "Llama-3.1-8B"


def test_plans_and_checkpoints_are_made_once(reference: Path, tmp_path: Path) -> None:
    folder = open_model(reference)
    folders, plans = pruned_folders(folder, tmp_path, SETTINGS)
    assert [path.name for path in plans] == ["bi-0-3.json", "bi-0-6.json"]
    assert [len(Plan.read(path).dropped) for path in plans] == [3, 6]
    assert [read_manifest(each).weights for each in folders] == ["virtual", "virtual"]
    times = [path.stat().st_mtime_ns for path in (*plans, *(each / "mi_prun.json" for each in folders))]
    assert pruned_folders(folder, tmp_path, SETTINGS) == (folders, plans)
    assert times == [path.stat().st_mtime_ns for path in (*plans, *(each / "mi_prun.json" for each in folders))]
    # A plan of another analysis is made anew.
    stale = json.loads(plans[0].read_text())
    stale["settings"]["analysis"] = "0" * 64
    plans[0].write_text(json.dumps(stale))
    pruned_folders(folder, tmp_path, SETTINGS)
    assert Plan.read(plans[0]).settings["analysis"] == Plan.read(plans[1]).settings["analysis"]
    # So is one of another seed: a short text has one analysis for all of them.
    stale = json.loads(plans[0].read_text())
    stale["settings"]["seed"] = 5
    plans[0].write_text(json.dumps(stale))
    pruned_folders(folder, tmp_path, SETTINGS)
    assert Plan.read(plans[0]).settings["seed"] == 0
    # So is one of another release, which may choose other blocks.
    older = json.loads(plans[0].read_text()) | {"tool_version": "0.0.1"}
    plans[0].write_text(json.dumps(older))
    pruned_folders(folder, tmp_path, SETTINGS)
    assert Plan.read(plans[0]).tool_version == Plan.read(plans[1]).tool_version


def test_each_pruned_model_is_healed_once(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.sweeps import healing as healing_room
    from bench.sweeps.healing import healed_folders
    from mi_prun.checkpoint.checkpoint import write_checkpoint
    from mi_prun.checkpoint.healing import Healed, Healing
    from mi_prun.comparison.comparison import analysis_in
    from mi_prun.recovery import heal as recovery
    from mi_prun.recovery.closed_form import NoClosedFormError
    from mi_prun.recovery.judge import NoBetterError

    healed: list[int] = []

    def heal(
        dense: Any, plan: Plan, out: Path, settings: HealSettings, *, virtual: bool, sampled: Any, force: bool = False
    ) -> None:
        healed.append(len(plan.dropped))
        if len(plan.dropped) == 6:
            raise NoBetterError("healing does not help")
        healing = Healing(method="fit", text="self", tokens=0, fit_tokens=64, seconds=1, seed=sampled.healing.shape[0])
        write_checkpoint(dense, plan, out, virtual=virtual, force=force, healed=Healed(healing))

    monkeypatch.setattr(recovery, "heal", heal)
    folder = open_model(reference)
    _, plans = pruned_folders(folder, tmp_path, SETTINGS)
    analysis = analysis_in(tmp_path, folder, SETTINGS.analyze)
    settings = HealSettings(train="none")
    for _ in range(2):  # the second time nothing is done
        (made,) = healed_folders(folder, plans, tmp_path, settings, analysis, virtual=True)
        assert "bi-0-6: healing does not help" in capsys.readouterr().err
    assert healed == [3, 6]
    assert made.name.startswith("bi-0-3-healed-")
    healing = read_manifest(made).healing
    assert healing is not None
    assert healing.seed == 4  # scoring and ranking windows of the analysis, text of the model's own
    monkeypatch.setattr(healing_room, "__version__", "9.9.9")  # another release may heal better
    healed_folders(folder, plans[1:], tmp_path, settings, analysis, virtual=True)
    assert healed == [3, 6, 6]
    other = healed_folders(folder, plans[:1], tmp_path, replace(settings, ridge=1.0), analysis, virtual=True)
    assert other != [made]

    def failing(error: UserError) -> None:
        raise error

    no_form, no_memory = NoClosedFormError("it does not fit this family"), UserError("out of memory while healing")
    for ridge, error, said in ((2.0, no_form, no_form), (3.0, no_memory, f"not healed: {no_memory}")):
        asked = replace(settings, ridge=ridge)
        with monkeypatch.context() as patch:
            patch.setattr(recovery, "heal", lambda *arguments, error=error, **options: failing(error))
            assert healed_folders(folder, plans[:1], tmp_path, asked, analysis, virtual=True) == []
        assert f"bi-0-3: {said}" in capsys.readouterr().err
    assert healed_folders(folder, plans[:1], tmp_path, replace(settings, ridge=3.0), analysis, virtual=True)
    assert healed.pop() == 3  # it may go another time
    # A plan made again is healed again, in its place: the folder's name says its blocks, not who chose them.
    older = Plan.read(plans[0]).model_copy(update={"tool_version": "0.0.1"})
    older.write(plans[0])
    assert healed_folders(folder, plans[:1], tmp_path, settings, analysis, virtual=True) == [made]
    assert read_manifest(made).plan == older
    assert healed == [3, 6, 6, 3, 3]


def test_a_healed_model_stands_beside_its_pruned_one_on_the_same_text(reference: Path, tmp_path: Path) -> None:
    from bench.sweeps.healing import healed_folders
    from mi_prun.comparison.comparison import analysis_in

    folder = open_model(reference)
    checkpoints, plans = pruned_folders(folder, tmp_path, SETTINGS)
    analysis = analysis_in(tmp_path, folder, SETTINGS.analyze)
    prose = list(topics.values())
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for number, text in enumerate(texts):
        text.write_text("\n\n\n".join(prose[number::2]))
    settings = HealSettings(
        sources=tuple(map(str, texts)), train="none", window_tokens=32, fit_tokens=2_048, gate_tokens=512,
        validation_tokens=256, device="cpu",
    )  # fmt: skip
    healed = healed_folders(folder, plans[:1], tmp_path, settings, analysis, virtual=True)
    models = measured_model.with_made(measured_model.open_dense(str(reference)), [*map(str, checkpoints + healed)])
    _, pruned, other, better = models.all
    assert (pruned.arm.label, better.arm.label) == ("bi 25.0%", "bi 25.0% healed")
    assert better.arm.healing is not None
    assert better.arm.healing.method == "fit"
    before, after = pruned.quality, better.quality
    assert before is not None
    assert after is not None
    assert (before.text, before.dense_perplexity) == (after.text, after.dense_perplexity)
    assert after.kl_nats_per_token < before.kl_nats_per_token
    assert [model.quality_measured_on for model in (pruned, other, better)] == ["healing", "plan", "healing"]


def test_a_sweep_with_healing_is_described(reference: Path, tmp_path: Path) -> None:
    harbour = tmp_path / "harbour.txt"
    harbour.write_text("The ships lie in the harbour. " * 20)
    heal = HealSettings(sources=("self", f"{harbour}=2"), minutes=10)
    asked = replace(SETTINGS, heal=heal, measure=replace(SETTINGS.measure, alive="alone"))
    prepared = prepare_sweep(str(reference), asked)
    assert [model.arm.label for model in prepared.models.all] == [
        "dense", "bi 25.0%", "bi 50.0%", "bi 25.0% healed", "bi 50.0% healed",
    ]  # fmt: skip
    assert prepared.sweep["heal"] == f"lora, 10 minutes of self, {harbour.name}"
    assert "10 minutes for each of 2 models to heal, where they are not there yet" in list(describe(prepared, asked))
    with pytest.raises(UserError, match="is healed on: the healed models would be judged by what they were taught"):
        prepare_sweep(str(reference), replace(asked, quality_text=str(harbour)))
    with pytest.raises(UserError, match="--heal does not go with --shape"):
        prepare_shape("qwen3-0.6b", tmp_path, replace(SHAPE, heal=heal))


def test_records_of_another_release_are_said_before_the_analysis(reference: Path, tmp_path: Path) -> None:
    (tmp_path / "points.jsonl").write_text('{"schema_version": 1}\n')
    for measure in (
        lambda: sweep(str(reference), tmp_path, SETTINGS),
        lambda: sweep_shape("qwen3-0.6b", tmp_path, SHAPE),
    ):
        with pytest.raises(UserError, match="line 1 has schema version 1; this release reads 2 and 3"):
            measure()
    assert [path.name for path in tmp_path.iterdir()] == ["points.jsonl"]


def test_a_sweep_by_other_text_leaves_the_checkpoints_of_the_first(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: Callable[..., Any]
) -> None:
    """The records of the first name their folders; `recommend FOLDER@RUN` gives them to the user."""
    made: list[Path] = []

    def measured(prepared: Any, folder: Any) -> list[Any]:
        made.extend(Path(model.arm.model) for model in prepared.models.all[1:])
        return [point()]

    monkeypatch.setattr(sweeping, "measure", measured)
    texts = prompts_from(tmp_path / "prompts", SETTINGS.measure)
    for name, words in (("a.txt", "the river was wide and slow "), ("b.txt", "1 2 3 4 5 6 7 8 9 { } ; ( ) return ")):
        (tmp_path / name).write_text(words * 400)
        analyze = replace(SETTINGS.analyze, sources=(str(tmp_path / name),))
        settings = replace(SETTINGS, ratios=".25", methods="bi:0", analyze=analyze, measure=texts)
        sweep(str(reference), tmp_path / "out", settings)
    blocks = [read_manifest(folder).plan.dropped for folder in made]
    assert blocks[0] != blocks[1]
    assert made[0] != made[1]
