"""`mi-prun-bench sweep`: make one analysis, plans and checkpoints, and measure every ratio beside the dense model.

The results folder holds all of it, so that a sweep that was killed goes on where it stopped:

    analysis-*/  plans/*.json  checkpoints/*/     what is measured (shapes/*/ for a shape)
    rounds.jsonl  points.jsonl                    what was measured (records/schema.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from bench.load.workloads import served_context
from bench.models.measured_model import MeasuredModel, MeasuredModels, blocks_digest, open_dense, with_made
from bench.models.shape import SHAPES, open_shape, shape_flags, spread, write_shape
from bench.models.weights import Weights, weights_of_config
from bench.quality.quality import with_quality_on
from bench.records.journal import results_folder
from bench.records.schema import Blocks, DenseModel, HealedBy, MeasuredArm, PointRecord
from bench.records.task_schema import TaskRecord
from bench.sweeps.healing import check_heal, healed_folders
from bench.sweeps.measure import Prepared, measure, prepare
from bench.sweeps.sweep_settings import SweepSettings
from bench.tasks.tasks import ask, check_context, check_tasks, served_in_turn
from mi_prun.analysis.analysis import Analysis
from mi_prun.architecture.architecture import Config, check_config, num_blocks
from mi_prun.checkpoint.manifest import MANIFEST_NAME, Manifest, is_pruned
from mi_prun.checkpoint.manifest import Weights as Written
from mi_prun.comparison.comparison import analysis_in
from mi_prun.console import say
from mi_prun.errors import UserError
from mi_prun.model.identity import config_digest
from mi_prun.model.loading import free_accelerators
from mi_prun.model.model_folder import ModelFolder
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.plan.ratio import parse_ratios
from mi_prun.settings import SELF, HealSettings, PlanSettings
from mi_prun.text.text_source import text_source
from mi_prun.text.weighted_source import parse_sources
from mi_prun.version import __version__


def prepare_sweep(dense: str, settings: SweepSettings) -> Prepared:
    """Prepare a sweep of a model, before any block is chosen: which ones go makes no difference to bytes.

    The pruned models and drafts are stand-ins; `sweep` puts those that it makes in their place.
    Raises UserError for all that can be known to be wrong by then.
    """
    from bench.sweeps.choices import sweep_choices
    from mi_prun.selection.methods import check_possible

    if settings.draft and settings.measure.loads.text is None:
        raise UserError("--draft needs --text: random tokens cannot be predicted by a draft")
    models = open_dense(dense)
    check_config(models.config)
    assert models.folder is not None
    check_heal(models.folder, settings)
    dense_model = models.all[0]
    choices = sweep_choices(settings, dense_model.arm.blocks.num_blocks)
    for choice in choices:
        check_possible(models.config, choice.spec.name, choice.k)
    pruned = [_stand_in(dense_model, choice.label, spread(choice.num_blocks, choice.k)) for choice in choices]
    drafts = [replace(dense_model, arm=_draft_arm(model.arm)) for model in pruned] if settings.draft else []
    healed = [replace(model, arm=_healed_arm(model.arm, settings.heal)) for model in pruned if settings.heal]
    prepared = _prepared(replace(models, all=(dense_model, *pruned, *healed, *drafts)), settings)
    if settings.tasks is not None:
        check_tasks(settings.tasks)
        context = served_context(prepared.settings.serve_flags, models.context)
        if context is not None:
            check_context(settings.tasks.tasks, dense, context)
    return prepared


def sweep(dense: str, out: Path, settings: SweepSettings) -> tuple[list[PointRecord], list[TaskRecord]]:
    """Measure a model, and ask it and its checkpoints the tasks, if any.

    Raises UserError before anything is started or written for what can be known by then.
    """
    prepared = prepare_sweep(dense, settings)
    with results_folder(out) as folder:
        assert prepared.models.folder is not None
        checkpoints, plans = pruned_folders(prepared.models.folder, out, settings)
        free_accelerators()
        if settings.heal is not None:
            analysis = analysis_in(out, prepared.models.folder, settings.analyze)
            virtual = not settings.materialise
            checkpoints += healed_folders(prepared.models.folder, plans, out, settings.heal, analysis, virtual=virtual)
            free_accelerators()
        models = with_made(prepared.models, [str(path) for path in checkpoints], plans if settings.draft else ())
        if settings.quality_text is not None:
            models = with_quality_on(models, settings.quality_text, settings.measure.loads.seed)
        points = measure(prepared.with_models(models), folder)
        if settings.tasks is None:
            return points, []
        asked = replace(settings.tasks, serve_flags=prepared.settings.serve_flags)
        return points, ask(served_in_turn(models), folder, asked, again=settings.measure.again)


def pruned_folders(dense: ModelFolder, out: Path, settings: SweepSettings) -> tuple[list[Path], list[Path]]:
    """Return the checkpoints of each method and ratio, and their plans; make those that the results folder lacks."""
    from bench.sweeps.choices import sweep_choices
    from mi_prun.checkpoint.checkpoint import write_checkpoint
    from mi_prun.model.loading import load_on
    from mi_prun.planning.planning import make_context, make_plan

    for name in ("plans", "checkpoints"):
        (out / name).mkdir(parents=True, exist_ok=True)
    say(f"{dense.name}: analysis")
    load = cache(lambda: load_on(dense, settings.analyze.device, settings.analyze.dtype))
    analysis = analysis_in(out, dense, settings.analyze, load)
    base = PlanSettings(model=dense.name, seed=settings.analyze.seed, device=settings.analyze.device)
    context = make_context(analysis, base, load)
    weights: Written = "materialized" if settings.materialise else "virtual"
    checkpoints, plans = [], []
    for choice in sweep_choices(settings, dense.num_blocks):
        spec, k = choice.spec, choice.k
        path = out / "plans" / f"{choice.file_name}.json"
        plan = Plan.read(path) if path.is_file() else None
        if plan is None or not _chosen_by(plan, analysis, base.seed):
            say(f"{dense.name}: {k} of {dense.num_blocks} blocks by {spec.label}")
            plan = make_plan(context.fresh(), k, replace(base, method=spec.name, rerank=spec.rerank))
            plan.write(path)
        # Another calibration text may drop other blocks: records of an earlier run name the folder of theirs.
        checkpoint = out / "checkpoints" / f"{choice.file_name}-{blocks_digest(plan.dropped)}-{weights}"
        if not is_pruned(checkpoint) or Manifest.read(checkpoint / MANIFEST_NAME).plan != plan:
            write_checkpoint(dense, plan, checkpoint, virtual=weights == "virtual", force=True)
        checkpoints.append(checkpoint)
        plans.append(path)
    return checkpoints, plans


def _chosen_by(plan: Plan, analysis: Analysis, seed: int) -> bool:
    """Tell whether this release chose the plan, by this analysis and seed. Another release may choose other blocks.

    A short text has the same analysis for every seed.
    """
    by = plan.settings.get("analysis"), plan.settings.get("seed")
    return plan.tool_version == __version__ and by == (analysis.record.fingerprint, seed)


def prepare_shape(name: str, out: Path, settings: SweepSettings) -> Prepared:
    """Prepare a sweep of a shape. The folders are named, not written. Raises UserError for what does not go with it."""
    default = SweepSettings()
    unfit = {
        "--methods": settings.methods != default.methods,
        "--calibration": settings.analyze.sources != default.analyze.sources,
        "--tokens": settings.analyze.scoring_tokens != default.analyze.scoring_tokens,
        "--no-virtual": settings.materialise,
        "--draft": settings.draft,
        "--quality-text": settings.quality_text,
        "--text": settings.measure.loads.text,
        "--tasks": settings.tasks,
        "--heal": settings.heal,
    }
    if options := [option for option, value in unfit.items() if value]:
        raise UserError(f"{options[0]} does not go with --shape: its weights mean nothing; leave it out")
    config = open_shape(name)
    check_config(config)
    count, weights = num_blocks(config), weights_of_config(config)
    title = name if name in SHAPES else Path(name).resolve().name.removesuffix(".json")
    models = [
        _shape_model(title, config, weights, spread(count, k), out)
        for k in (0, *parse_ratios(settings.ratios, count, dense=True))
    ]
    dense = DenseModel(
        name=title,
        model_type=config["model_type"],
        shape=title,
        config_sha256=config_digest(config),
        weights_sha256=None,
    )
    return _prepared(MeasuredModels(dense=dense, all=tuple(models), config=config), settings)


def sweep_shape(name: str, out: Path, settings: SweepSettings) -> list[PointRecord]:
    """Measure a shape: speed and memory only."""
    prepared = prepare_shape(name, out, settings)
    config = prepared.models.config
    with results_folder(out) as folder:
        for model in prepared.models.all:
            home = Path(model.arm.model)
            home.parent.mkdir(parents=True, exist_ok=True)
            write_shape(config, kept_blocks(num_blocks(config), model.arm.blocks.dropped), home, force=True)
        return measure(prepared, folder)


def _shape_model(name: str, config: Config, weights: Weights, dropped: tuple[int, ...], out: Path) -> MeasuredModel:
    count = num_blocks(config)
    own = weights.keep(kept_blocks(count, dropped))
    ratio = len(dropped) / count
    folder = out / "shapes" / f"{Path(name).name}-{count - len(dropped)}-of-{count}"
    return MeasuredModel(
        arm=MeasuredArm(
            kind="pruned" if dropped else "dense",
            label=f"{ratio:.1%} dropped" if dropped else "dense",
            model=str(folder),
            blocks=Blocks(
                num_blocks=count,
                dropped=dropped,
                block_ratio=ratio,
                parameter_ratio=1 - own.total_bytes / weights.total_bytes,
                method="evenly spread" if dropped else None,
            ),
            weights="dummy",
        ),
        weight_bytes=own.total_bytes,
        weights=own,
        flags=tuple(shape_flags(folder)),
    )


def _stand_in(dense: MeasuredModel, label: str, dropped: tuple[int, ...]) -> MeasuredModel:
    """Stand for a model that is not made yet: what it will weigh."""
    count = dense.arm.blocks.num_blocks
    own = dense.weights.keep(kept_blocks(count, dropped)) if dense.weights else None
    blocks = dense.arm.blocks.model_copy(update={"dropped": dropped, "block_ratio": len(dropped) / count})
    return MeasuredModel(
        arm=dense.arm.model_copy(update={"kind": "pruned", "label": label, "blocks": blocks, "weights": "virtual"}),
        weight_bytes=own.total_bytes if own else dense.weight_bytes,
        weights=own,
    )


def _healed_arm(pruned: MeasuredArm, heal: HealSettings | None) -> MeasuredArm:
    assert heal is not None
    text = ", ".join(heal.sources)
    by = HealedBy(method=heal.train, text=text, tokens=heal.tokens or 0, fit_tokens=0, seed=heal.seed)
    return pruned.model_copy(update={"label": f"{pruned.label} healed", "healing": by})


def _draft_arm(pruned: MeasuredArm) -> MeasuredArm:
    return pruned.model_copy(update={"kind": "draft", "label": f"draft {pruned.label}"})


def _prepared(models: MeasuredModels, settings: SweepSettings) -> Prepared:
    prepared = prepare(models, settings.measure)
    shape = models.dense.shape is not None
    return replace(prepared, sweep={"ratios": settings.ratios, **({} if shape else _choosing(settings))})


def _choosing(settings: SweepSettings) -> dict[str, str | int | bool | None]:
    """Say what blocks are chosen and judged by. Texts go by their names: a record names no folder of the machine."""
    text = settings.quality_text
    return {
        "methods": settings.methods,
        "calibration": _text_names(settings.analyze.sources),
        "scoring_tokens": settings.analyze.scoring_tokens,
        "materialise": settings.materialise,
        "quality_text": _text_name(text) if text is not None else None,
        "seed": settings.analyze.seed,
        **({"heal": _length(settings.heal)} if settings.heal else {}),
    }


def _length(heal: HealSettings) -> str:
    """Say what each model is healed by, and how long."""
    text = _text_names(heal.sources)
    if heal.train == "none":
        return f"fit on {text}"
    how_long = f"{heal.tokens:,} tokens" if heal.tokens else f"{heal.minutes:g} minutes"
    return f"{heal.train}, {how_long} of {text}"


def _text_names(texts: Sequence[str]) -> str:
    return ", ".join(_text_name(source.name) for source in parse_sources(texts))


def _text_name(text: str) -> str:
    return text if text == SELF else text_source(text).name
