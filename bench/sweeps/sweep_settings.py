"""Settings of a sweep, and their defaults. They live here only."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.settings import MeasureSettings
from bench.tasks.task_settings import TaskSettings
from mi_prun.settings import AnalyzeSettings, HealSettings


@dataclass(frozen=True)
class SweepSettings:
    """What a sweep is asked for.

    ratios: shares of the blocks to drop; 0, the dense model, is always among them. methods: see `mi-prun methods`.
    materialise: write whole checkpoints instead of virtual ones. draft: measure the dense model drafted by each pruned
    one too. quality_text: measure quality on this text; None takes the held-out part of the calibration text. tasks:
    what the dense model and the checkpoints are asked when all is measured, by the flags of `measure`. heal: how each
    pruned model is healed, to be measured too; None: none is.
    """

    ratios: str = "0,.125,.25,.375,.5"
    methods: str = "hybrid"
    materialise: bool = False
    draft: bool = False
    quality_text: str | None = None
    tasks: TaskSettings | None = None
    heal: HealSettings | None = None
    analyze: AnalyzeSettings = field(default_factory=AnalyzeSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
