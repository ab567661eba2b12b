"""`mi-prun-bench run` and `draft`: measure models that are there already beside their dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.models.measured_model import open_measured_models
from bench.quality.quality import check_not_healed_on, with_quality_on
from bench.records.journal import results_folder
from bench.records.schema import PointRecord
from bench.settings import MeasureSettings
from bench.sweeps.measure import WhileServed, measure, prepare
from mi_prun.errors import UserError


def run(
    dense: str,
    pruned: Sequence[str],
    out: Path,
    settings: MeasureSettings,
    *,
    quality_text: str | None = None,
    while_served: WhileServed | None = None,
) -> list[PointRecord]:
    """Measure pruned folders beside the dense model; `while_served` may use each engine before it is measured.

    quality_text: measure quality on this text; None takes what each plan measured.
    Raises UserError before anything is started or written for a setting or a model that will not do.
    """
    models = open_measured_models(dense, pruned)
    if quality_text is not None:
        check_not_healed_on(quality_text, models)
    prepared = prepare(models, settings)
    with results_folder(out) as folder:
        if quality_text is not None:
            prepared = replace(prepared, models=with_quality_on(models, quality_text, settings.loads.seed))
        return measure(prepared, folder, while_served)


def run_drafts(
    dense: str, drafts: Sequence[Path], out: Path, settings: MeasureSettings, draft_tokens: int | None
) -> list[PointRecord]:
    """Measure the dense model alone, then drafted by what each plan, or pruned folder, keeps of it.

    draft_tokens: at a time; None takes what the plan says, or mi-prun-serve's own number.
    """
    if draft_tokens is not None and draft_tokens < 1:
        raise UserError(f"--draft-tokens must be at least 1, got {draft_tokens}")
    models = open_measured_models(dense, (), drafts)
    if draft_tokens is not None:
        given = ("--draft-tokens", str(draft_tokens))
        changed = (
            replace(s, flags=(*s.flags, *given), arm=s.arm.model_copy(update={"draft_tokens": draft_tokens}))
            for s in models.all[1:]
        )
        models = replace(models, all=(models.all[0], *changed))
    prepared = prepare(models, settings)
    with results_folder(out) as folder:
        return measure(prepared, folder)
