"""A plan for blocks that the user named, without an analysis: nothing is to be chosen, so only quality is measured.

Only the held-out part of the calibration text is read, or sampled from the model: 8,192 tokens by default, not 78,000.
"""

from __future__ import annotations

from collections.abc import Callable

from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import ModelFolder
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.quality.evaluator import Evaluator
from mi_prun.quality.quality import quality_of
from mi_prun.settings import AnalyzeSettings, check_seed
from mi_prun.text.calibration import load_mixture
from mi_prun.text.weighted_source import check_sources


def plan_dropping(
    dense: ModelFolder,
    dropped: tuple[int, ...],
    settings: AnalyzeSettings,
    *,
    quality: bool = True,
    load: Callable[[], BlockModel] | None = None,
) -> Plan:
    """Return the plan that drops the blocks `dropped` (0-based). It has no objective J: that comes from an analysis.

    settings: its text, window, seed and held-out tokens are used. quality: else no model is loaded, no text read.
    load: gives the model to a caller that has it.
    """
    check_seed(settings.seed)
    dense.check_window(settings.window_tokens)
    kept = kept_blocks(dense.num_blocks, dropped)
    plan = Plan(dense=dense.identity, dropped=dropped, kept=kept, method="by-hand", settings={})
    if not quality:
        return plan
    check_sources(settings.sources)
    window = settings.window_tokens or dense.context_tokens()
    model = load() if load is not None else load_on(dense, settings.device, settings.dtype)
    calibration = load_mixture(
        settings.sources,
        dense.tokenizer,
        window_tokens=window,
        scoring_tokens=window,  # one window, the least
        ranking_tokens=window,
        held_out_tokens=settings.part_tokens[2],
        seed=settings.seed,
        model=model.model,
        scattered=True,
    )
    dense.check_tokens(calibration.held_out.tokens)
    held_out, described = calibration.held_out, calibration.description
    measured = quality_of(Evaluator(model, held_out.tokens), dropped, text=held_out.text, bos=described.bos)
    settings_of_plan = {"calibration": described.source, "seed": settings.seed}
    return plan.model_copy(update={"quality": measured, "settings": settings_of_plan})
