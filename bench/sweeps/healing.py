"""Heal each pruned model of a sweep, too. What healing does not help is left out, and said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.sweeps.sweep_settings import SweepSettings
from mi_prun.analysis.analysis import Analysis
from mi_prun.checkpoint.manifest import MANIFEST_NAME, Manifest, is_pruned
from mi_prun.console import say
from mi_prun.errors import UserError
from mi_prun.files import write_text
from mi_prun.model.model_folder import ModelFolder
from mi_prun.plan.plan import Plan
from mi_prun.settings import SELF, HealSettings
from mi_prun.text.text_source import text_digest
from mi_prun.version import __version__


def check_heal(dense: ModelFolder, settings: SweepSettings) -> None:
    """Refuse what healing would refuse after the analysis. Raises UserError."""
    from mi_prun.recovery.heal import check_healable, check_settings, digests

    if settings.heal is None:
        return
    check_settings(settings.heal)
    check_healable(dense)
    text = settings.quality_text
    if text not in (None, SELF) and text_digest(text) in digests(settings.heal):
        raise UserError(
            f"--quality-text {text} is healed on: the healed models would be judged by what they were taught; name "
            "another text, or leave it out"
        )


def healed_folders(
    dense: ModelFolder, plans: Sequence[Path], out: Path, settings: HealSettings, analysis: Analysis, *, virtual: bool
) -> list[Path]:
    """Return the healed checkpoints of the plans; make those that the results folder lacks."""
    from mi_prun.recovery.closed_form import NoClosedFormError
    from mi_prun.recovery.heal import fingerprint_of, heal
    from mi_prun.recovery.healing_text import SampledText
    from mi_prun.recovery.judge import NoBetterError

    sampled = SampledText.of(analysis) if analysis.record.calibration.source == SELF else None
    folders = []
    for path in plans:
        plan = Plan.read(path)
        kind = "virtual" if virtual else "materialized"
        name = f"{path.stem}-healed-{fingerprint_of(plan, settings, sampled)[:8]}-{kind}"
        folder, refused = out / "checkpoints" / name, out / "checkpoints" / f"{name}-{__version__}.refused.txt"
        if refused.is_file():
            say(f"{path.stem}: {refused.read_text().strip()}")
            continue
        if not is_pruned(folder) or Manifest.read(folder / MANIFEST_NAME).plan != plan:
            say(f"{dense.name}: healing {path.stem}")
            try:
                # A folder that is there is of a plan made again: its name says the blocks, not all of the plan.
                heal(dense, plan, folder, settings, virtual=virtual, sampled=sampled, force=is_pruned(folder))
            except (NoBetterError, NoClosedFormError) as error:
                say(f"{path.stem}: {error}")
                write_text(refused, f"{error}\n")
                continue
            except UserError as error:  # the others go on, and the next start tries this one again
                say(f"{path.stem}: not healed: {error}")
                continue
        folders.append(folder)
    return folders
