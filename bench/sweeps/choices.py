"""List what a sweep prunes: every method at every ratio."""

from __future__ import annotations

from dataclasses import dataclass

from bench.sweeps.sweep_settings import SweepSettings
from mi_prun.comparison.comparison import parse_methods
from mi_prun.comparison.comparison_row import MethodSpec
from mi_prun.plan.ratio import parse_ratios


@dataclass(frozen=True)
class SweepChoice:
    """A choice that a sweep makes: k of `num_blocks` blocks, by one method."""

    spec: MethodSpec
    k: int
    num_blocks: int

    @property
    def label(self) -> str:
        """Name the choice before its plan is made: `hybrid 25.0%`."""
        return f"{self.spec.name} {self.k / self.num_blocks:.1%}"

    @property
    def file_name(self) -> str:
        """Name the choice's plan and checkpoint in the results folder, without a suffix."""
        return f"{self.spec.label.replace(':', '-')}-{self.k}"


def sweep_choices(settings: SweepSettings, num_blocks: int) -> list[SweepChoice]:
    """List the choices of a sweep: method by method, the ratios of each in the order they were given.

    Raises UserError for an unknown method and for a ratio that cannot be had.
    """
    ks = parse_ratios(settings.ratios, num_blocks, dense=True)
    return [SweepChoice(spec, k, num_blocks) for spec in parse_methods(settings.methods) for k in ks]
