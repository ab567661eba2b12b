"""`mi-prun plan`: analysis -> plan.

Milliseconds, unless candidates or quality are measured: then the dense model is opened.
"""

from __future__ import annotations

from mi_prun.analysis import Analysis
from mi_prun.block_model import BlockModel, load_block_model, pick_device, pick_dtype
from mi_prun.errors import UserError
from mi_prun.model import identity_of, open_model
from mi_prun.plan import Plan, Quality, kept_blocks
from mi_prun.quality import quality_of
from mi_prun.selection.context import Context
from mi_prun.selection.methods import choose
from mi_prun.settings import PlanSettings


def make_context(analysis: Analysis, settings: PlanSettings) -> Context:
    """A context that opens the analysis's dense model when it is first needed, and refuses another one."""

    def load() -> BlockModel:
        dense = open_model(settings.model or analysis.record.dense.name)
        if not identity_of(dense).same_model(analysis.record.dense):
            raise UserError(f"the analysis was made of {analysis.record.dense.name}; {dense.name} is another model")
        device = pick_device(settings.device)
        return load_block_model(dense, device=device, dtype=pick_dtype(device))

    return Context(analysis, load, settings.seed)


def make_plan(context: Context, k: int, settings: PlanSettings) -> Plan:
    """Choose k blocks and measure the choice."""
    choice = choose(context, settings.method, k, settings.rerank)
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
        },
        objective=choice.objective,
        forward_passes=choice.forward_passes,
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
        quality=held_out_quality(context, dropped) if settings.quality else None,
    )


def held_out_quality(context: Context, dropped: tuple[int, ...]) -> Quality:
    calibration = context.analysis.record.calibration
    text = f"{calibration.source}, held-out part"
    return quality_of(context.held_out, dropped, text=text, bos=calibration.bos)
