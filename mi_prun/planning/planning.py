"""`mi-prun plan`: analysis -> plan.

Milliseconds, unless candidates or quality are measured: then the dense model is opened.
"""

from __future__ import annotations

from collections.abc import Callable

from mi_prun.analysis.analysis import Analysis
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel, load_on
from mi_prun.model.model_folder import ModelFolder, identity_of, open_model
from mi_prun.plan.plan import Plan, Quality, kept_blocks
from mi_prun.plan.ratio import Amount
from mi_prun.planning.limit import most_blocks, parse_limit
from mi_prun.quality.quality import quality_of
from mi_prun.selection.context import CRITERIA, Context, Criterion
from mi_prun.selection.methods import Choice, check_rerank, choose, method_named, objective_of
from mi_prun.settings import PlanSettings, check_seed


def make_context(analysis: Analysis, settings: PlanSettings, load: Callable[[], BlockModel] | None = None) -> Context:
    """A context that loads the analysis's dense model when it is first needed. Another one is refused: a model that the
    user named at once, whether it is needed or not.

    load: gives that model where the caller has it already.
    """
    check_settings(settings)
    named = None if settings.model is None else _dense(analysis, settings.model)

    def open_dense() -> BlockModel:
        return load_on(named or _dense(analysis, None), settings.device)

    return Context(analysis, load or open_dense, settings.seed, _criterion(settings))


def _dense(analysis: Analysis, reference: str | None) -> ModelFolder:
    """The analysis's dense model: as the user names it now, or as it was named then."""
    try:
        dense = open_model(analysis.record.dense.name if reference is None else reference)
    except UserError as error:
        if reference is not None:
            raise
        raise UserError(f"{error}. The analysis was made of it; say where it is now with --model") from error
    if not identity_of(dense).same_model(analysis.record.dense):
        raise UserError(f"the analysis was made of {analysis.record.dense.name}; {dense.name} is another model")
    return dense


def check_settings(settings: PlanSettings) -> None:
    """Refuse what cannot be, before anything is computed."""
    method_named(settings.method)
    check_rerank(settings.rerank)
    check_seed(settings.seed)
    _criterion(settings)


def _criterion(settings: PlanSettings) -> Criterion | None:
    found = next((known for known in CRITERIA if known == settings.criterion), None)
    if found is None and settings.criterion is not None:
        raise UserError(f"--criterion must be one of {', '.join(CRITERIA)}, got {settings.criterion!r}")
    return found


def plan_for(context: Context, amount: Amount, settings: PlanSettings) -> Plan:
    """The plan for what the user asked for."""
    wanted = amount.blocks(context.analysis.record.dense)
    if isinstance(wanted, tuple):
        return plan_by_hand(context, wanted, settings)
    if wanted is not None:
        return make_plan(context, wanted, settings)
    limit = parse_limit(amount.max_ppl_increase, amount.max_kl)
    if limit is None:
        raise ValueError("neither a number of blocks nor a limit")
    if limit.kind == "kl" and settings.criterion is None:
        context = context.fresh("kl")
    within = most_blocks(context, limit, settings.method, settings.rerank)
    said = {
        "limit": f"{limit.text(limit.value)} at most, on the ranking text",
        "cost": limit.text(within.cost),
        "cost_of_one_block_more": None if within.next_cost is None else limit.text(within.next_cost),
    }
    return _plan(context, within.choice, settings, within.forward_passes, said)


def make_plan(context: Context, k: int, settings: PlanSettings) -> Plan:
    """Choose k blocks and measure the choice."""
    choice = choose(context, settings.method, k, settings.rerank)
    return _plan(context, choice, settings, choice.forward_passes, {})


def _plan(
    context: Context, choice: Choice, settings: PlanSettings, forward_passes: float, said: dict[str, str | None]
) -> Plan:
    record = context.analysis.record
    return Plan(
        dense=record.dense,
        dropped=choice.dropped,
        kept=kept_blocks(record.dense.num_blocks, choice.dropped),
        method=settings.method,
        settings={
            "rerank": choice.candidates,
            "criterion": context.criterion,
            "seed": settings.seed,
            "estimator": record.estimator,
            "projection": record.projection,
            "noise": record.noise,
            "calibration": record.calibration.source,
            "analysis": record.fingerprint,
            **said,
        },
        objective=choice.objective,
        forward_passes=forward_passes,
        quality=held_out_quality(context, choice.dropped) if settings.quality else None,
    )


def plan_by_hand(context: Context, dropped: tuple[int, ...], settings: PlanSettings) -> Plan:
    """A plan for blocks that the user named."""
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
    calibration = context.analysis.record.calibration
    text = f"{calibration.source}, held-out part"
    return quality_of(context.held_out, dropped, text=text, bos=calibration.bos)
