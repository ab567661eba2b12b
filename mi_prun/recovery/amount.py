"""How long is healed, as the command line says it: `1M` tokens, `10min`, `fit`."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

from mi_prun.errors import LONGEST_SHOWN, UserError
from mi_prun.settings import MOST_MINUTES, HealSettings
from mi_prun.sizes import parse_tokens

MINUTES = {"s": 1 / 60, "min": 1.0, "h": 60.0}


def parse_heal(text: str, settings: HealSettings) -> HealSettings:
    """Return the settings with the length that `--heal` names: `fit`, `10min`, `1h`, `1M` (tokens).

    Raises UserError for any other text.
    """
    if text == "fit":
        return replace(settings, train="none", tokens=None, minutes=None)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h)", text.strip().lower())
    if match and 0 < (minutes := float(match[1]) * MINUTES[match[2]]) < MOST_MINUTES:
        return replace(settings, tokens=None, minutes=minutes)
    if text.strip()[-1:] in ("k", "M", "b", "B"):  # 10 and 10m may be minutes or tokens
        with contextlib.suppress(UserError):
            return replace(settings, tokens=parse_tokens(text), minutes=None)
    raise UserError(
        f"--heal must be `fit`, a time over 0 like 10min or 1h, or tokens like 500k or 1M, got {text[:LONGEST_SHOWN]!r}"
    )
