"""A plan for blocks that the user named, without an analysis: nothing is to be chosen, so only quality is measured.

Of the calibration text only the held-out part is read, or sampled from the model: of 78,000 tokens by default 8,192.
"""

from __future__ import annotations

from collections.abc import Callable

from mi_prun.model.block_model import BlockModel, check_window, context_tokens, load_on, load_tokenizer
from mi_prun.model.model_folder import ModelFolder, identity_of
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.quality.evaluator import Evaluator
from mi_prun.quality.quality import quality_of
from mi_prun.settings import AnalyzeSettings, check_seed
from mi_prun.text.calibration import load_calibration


def plan_dropping(
    dense: ModelFolder,
    dropped: tuple[int, ...],
    settings: AnalyzeSettings,
    *,
    quality: bool = True,
    load: Callable[[], BlockModel] | None = None,
) -> Plan:
    """Plan to drop the blocks `dropped` (0-based). The plan has no objective J: that comes from an analysis.

    settings: its text, window, seed and held-out tokens are used. quality: else no model is loaded, no text read.
    load: gives the model to a caller that has it.
    """
    check_seed(settings.seed)
    check_window(dense, settings.window_tokens)
    identity = identity_of(dense)
    plan = Plan(
        dense=identity, dropped=dropped, kept=kept_blocks(identity.num_blocks, dropped), method="by-hand", settings={}
    )
    if not quality:
        return plan
    window = settings.window_tokens or context_tokens(dense)
    model = load() if load is not None else load_on(dense, settings.device, settings.dtype)
    calibration = load_calibration(
        settings.calibration,
        load_tokenizer(dense),
        window_tokens=window,
        scoring_tokens=window,  # one window, the least
        ranking_tokens=window,
        held_out_tokens=settings.part_tokens[2],
        seed=settings.seed,
        model=model.model,
        scattered=True,
    )
    held_out, described = calibration.held_out, calibration.description
    measured = quality_of(Evaluator(model, held_out.tokens), dropped, text=held_out.text, bos=described.bos)
    settings_of_plan = {"calibration": described.source, "seed": settings.seed}
    return plan.model_copy(update={"quality": measured, "settings": settings_of_plan})
