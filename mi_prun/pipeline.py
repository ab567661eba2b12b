"""`mi-prun prune`: dense model -> analysis -> plan -> checkpoint, in one process.

The model is opened once and handed down. Its weights are loaded once, for the pass and for what is measured. The
analysis stays in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mi_prun.analysis.analyze import check_analyzable, make_analysis
from mi_prun.architecture.architecture import check_config
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.errors import UserError
from mi_prun.files import check_apart, check_output
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import ModelFolder, check_quantization_beside, open_model
from mi_prun.plan.plan import Plan
from mi_prun.plan.ratio import Amount
from mi_prun.planning.by_hand import plan_dropping
from mi_prun.planning.limit import parse_limit
from mi_prun.planning.planning import check_by_hand, check_settings, make_context, plan_for
from mi_prun.recovery.heal import check_healable, check_model
from mi_prun.recovery.heal import check_settings as check_heal_settings
from mi_prun.recovery.heal import heal as heal_model
from mi_prun.recovery.healing_text import SampledText
from mi_prun.selection.methods import check_possible
from mi_prun.settings import SELF, AnalyzeSettings, HealSettings, PlanSettings, WriteSettings
from mi_prun.text.weighted_source import text_files


@dataclass(frozen=True)
class Pruned:
    """What `prune` made: the plan, and the manifest of the folder that was written."""

    plan: Plan
    manifest: Manifest


def prune(
    reference: str | Path,
    out: Path,
    amount: Amount,
    analyze_settings: AnalyzeSettings,
    plan_settings: PlanSettings,
    write_settings: WriteSettings,
    *,
    heal: HealSettings | None = None,
    force: bool = False,
) -> Pruned:
    """Choose the blocks of the dense model `reference` that go, and write the checkpoint without them into `out`.

    heal: make up for the dropped blocks, too.
    Raises UserError, with nothing written. What can be known before the long pass is refused before it.
    """
    check_output(out, force=force, inputs=text_files(analyze_settings.sources))  # before a model is fetched
    if heal is not None:
        check_heal_settings(heal)
    dense = open_model(reference)
    if heal is not None:
        check_healable(dense)
    blocks = check_prunable(dense, out, amount, analyze_settings, plan_settings, write_settings)
    load = cache(lambda: load_on(dense, analyze_settings.device, analyze_settings.dtype))
    sampled = None
    if isinstance(blocks, tuple):  # nothing is to be chosen
        plan = plan_dropping(dense, blocks, analyze_settings, quality=plan_settings.quality, load=load)
    else:
        if heal is not None and not (heal.stream_blocks or analyze_settings.stream_blocks):
            check_model(load(), dense, heal)  # before the choice, which takes longest
        analysis = make_analysis(dense, analyze_settings, load=load)
        if analysis is None:
            raise ValueError("prune runs as one process")
        plan = plan_for(make_context(analysis, plan_settings, load, dense), amount, plan_settings)
        if analyze_settings.sources == (SELF,):
            sampled = SampledText.of(analysis)
    if heal is not None:
        try:
            healed = heal_model(
                dense,
                plan,
                out,
                heal,
                load=load,
                sampled=sampled,
                virtual=write_settings.virtual,
                max_shard_bytes=write_settings.max_shard_bytes,
                force=force,
                assume_uniform=write_settings.assume_uniform,
            )
        except UserError as error:
            if isinstance(blocks, tuple):
                raise
            # The choice took longest: it need not be made again.
            dropped = ",".join(map(str, plan.dropped))
            raise type(error)(f"{error}; the blocks chosen: --drop {dropped}") from error
        return Pruned(plan, healed)
    load.cache_clear()  # writing reads the files
    manifest = write_checkpoint(
        dense,
        plan,
        out,
        virtual=write_settings.virtual,
        max_shard_bytes=write_settings.max_shard_bytes,
        force=force,
        assume_uniform=write_settings.assume_uniform,
    )
    return Pruned(plan, manifest)


def check_prunable(
    dense: ModelFolder,
    out: Path,
    amount: Amount,
    analyze_settings: AnalyzeSettings,
    plan_settings: PlanSettings,
    write_settings: WriteSettings,
) -> int | tuple[int, ...] | None:
    """Refuse what a later step would refuse, before weights are loaded and text is read or sampled.

    Returns how many blocks go, those named by hand, or None where a limit decides.
    """
    check_apart(dense.path, out)
    check_quantization_beside(dense)
    check_settings(plan_settings)
    blocks = amount.blocks(dense.identity)
    if isinstance(blocks, tuple):
        check_by_hand(plan_settings)
    if blocks is None:
        parse_limit(amount.max_ppl_increase, amount.max_kl)
    if not write_settings.assume_uniform:
        check_config(dense.config)
    check_possible(dense.config, plan_settings.method, blocks)
    check_analyzable(dense, analyze_settings)
    return blocks
