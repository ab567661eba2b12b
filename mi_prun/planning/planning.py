"""`mi-prun plan`: analysis -> plan.

Milliseconds, unless candidates or quality are measured: then the dense model is opened.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mi_prun.analysis.analysis import Analysis
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_on, pick_device
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.plan.plan import Plan, Quality, kept_blocks
from mi_prun.plan.ratio import Amount
from mi_prun.planning.effort import with_short_ranking
from mi_prun.planning.limit import most_blocks, parse_limit
from mi_prun.quality.quality import quality_of
from mi_prun.selection.context import CRITERIA, Context, Criterion
from mi_prun.selection.methods import Choice, check_rerank, choose, method_named, objective_of
from mi_prun.settings import PlanSettings, check_seed
from mi_prun.text.recall import check_recall


def make_context(
    analysis: Analysis,
    settings: PlanSettings,
    load: Callable[[], BlockModel] | None = None,
    dense: ModelFolder | None = None,
) -> Context:
    """Return a context that loads the analysis's dense model when it is first needed.

    dense: that model's folder, if the caller has opened it. load: gives the model, if the caller shares it.
    Raises UserError if `dense` or `settings.model` is another model than the one analyzed.
    """
    check_settings(settings)
    if dense is None and settings.model is not None:
        dense = open_model(settings.model)
    if dense is not None:
        _check_analyzed(analysis, dense)

    def load_dense() -> BlockModel:
        return load_on(dense or _dense_of(analysis), settings.device)

    short = with_short_ranking(analysis, pick_device(settings.device))
    return Context(short, load or load_dense, settings.seed, _criterion(settings), settings.recall)


def _dense_of(analysis: Analysis) -> ModelFolder:
    """Open the analysis's dense model where it was."""
    try:
        dense = open_model(analysis.record.dense.name)
    except UserError as error:
        raise UserError(f"{error}. The analysis was made of it; say where it is now with --model") from error
    _check_analyzed(analysis, dense)
    return dense


def _check_analyzed(analysis: Analysis, dense: ModelFolder) -> None:
    if not dense.identity.same_model(analysis.record.dense):
        raise UserError(f"the analysis was made of {analysis.record.dense.name}; {dense.name} is another model")
    for windows in (analysis.scoring, analysis.ranking, analysis.held_out):
        dense.check_tokens(torch.from_numpy(windows))


def check_settings(settings: PlanSettings) -> None:
    """Refuse settings that no plan can be made with, before anything is computed."""
    method_named(settings.method)
    check_rerank(settings.rerank, method=settings.method)
    check_seed(settings.seed)
    check_recall(settings.recall)
    _criterion(settings)


def check_by_hand(settings: PlanSettings) -> None:
    """Refuse settings of a choice where the user named the blocks: they would be ignored."""
    names, default = ("method", "rerank", "criterion", "recall"), PlanSettings()
    if given := [f"--{name}" for name in names if getattr(settings, name) != getattr(default, name)]:
        raise UserError(f"--drop names the blocks, nothing is chosen: leave out {', '.join(given)}")


def _criterion(settings: PlanSettings) -> Criterion | None:
    criterion = next((known for known in CRITERIA if known == settings.criterion), None)
    if criterion is None and settings.criterion is not None:
        raise UserError(f"--criterion must be one of {', '.join(CRITERIA)}, got {settings.criterion!r}")
    return criterion


def plan_for(context: Context, amount: Amount, settings: PlanSettings) -> Plan:
    """Return the plan for the amount that the user asked for."""
    wanted = amount.blocks(context.analysis.record.dense)
    if isinstance(wanted, tuple):
        check_by_hand(settings)
        return plan_by_hand(context, wanted, settings)
    if wanted is not None:
        return make_plan(context, wanted, settings)
    limit = parse_limit(amount.max_ppl_increase, amount.max_kl)
    if limit is None:
        raise ValueError("neither a number of blocks nor a limit")
    if limit.kind == "kl" and settings.criterion is None:
        context = context.fresh("kl")
    within = most_blocks(context, limit, settings.method, settings.rerank)
    about_limit = {
        "limit": f"{limit.text(limit.value)} at most, on the ranking text",
        "cost": limit.text(within.cost),
        "cost_of_one_block_more": None if within.next_cost is None else limit.text(within.next_cost),
    }
    return _plan(context, within.choice, settings, within.forward_passes, about_limit)


def make_plan(context: Context, k: int, settings: PlanSettings) -> Plan:
    """Choose k blocks, measure the choice and return its plan."""
    choice = choose(context, settings.method, k, settings.rerank)
    return _plan(context, choice, settings, choice.forward_passes, {})


def _plan(
    context: Context,
    choice: Choice,
    settings: PlanSettings,
    forward_passes: float,
    about_limit: dict[str, str | None],
) -> Plan:
    record = context.analysis.record
    return Plan(
        dense=record.dense,
        dropped=choice.dropped,
        kept=kept_blocks(record.dense.num_blocks, choice.dropped),
        method=settings.method,
        settings={
            "rerank": choice.candidates,
            **context.measured_with,
            "seed": settings.seed,
            "estimator": record.estimator,
            "projection": record.projection,
            "noise": record.noise,
            "calibration": record.calibration.source,
            "analysis": record.fingerprint,
            **about_limit,
        },
        objective=choice.objective,
        forward_passes=forward_passes,
        quality=held_out_quality(context, choice.dropped) if settings.quality else None,
    )


def plan_by_hand(context: Context, dropped: tuple[int, ...], settings: PlanSettings) -> Plan:
    """Return the plan for blocks that the user named."""
    record = context.analysis.record
    return Plan(
        dense=record.dense,
        dropped=dropped,
        kept=kept_blocks(record.dense.num_blocks, dropped),
        method="by-hand",
        settings={"analysis": record.fingerprint},
        objective=objective_of(context.analysis, dropped),
        quality=held_out_quality(context, dropped) if settings.quality else None,
    )


def held_out_quality(context: Context, dropped: tuple[int, ...]) -> Quality:
    """Measure the model without the blocks `dropped` on the held-out text of the analysis."""
    calibration = context.analysis.record.calibration
    text = f"{calibration.source}, held-out part"
    return quality_of(context.held_out, dropped, text=text, bos=calibration.bos)
