"""Sizes in bytes and numbers of tokens, as people write them."""

from __future__ import annotations

import math
import re

from mi_prun.errors import LONGEST_SHOWN, UserError

UNITS = {f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))} | {
    f"{prefix}IB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)
}
TOKEN_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
MOST_TOKENS = 10**15
SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([KMGT]?I?B)?", re.ASCII)


def parse_size(text: str, option: str, example: str = "5GB or 500MB", *, needs_unit: bool = False) -> int:
    """Return the bytes of `5GB`, `1.5 GiB` or `500000`: powers of ten, or of two with an `i`; at least 1 byte.

    option: names the option in the error. needs_unit: refuse a bare number.
    """
    size = SIZE.fullmatch(text.strip().upper())
    count = float(size[1]) if size else 0.0
    num_bytes = round(count * UNITS.get(size[2] or "B", 0)) if size and math.isfinite(count) else 0
    if num_bytes < 1 or (needs_unit and size and size[2] is None):
        raise UserError(f"{option} must be like {example}, got {text!r}")
    return num_bytes


def parse_tokens(text: str | int) -> int:
    """Return the number of tokens that `1M`, `500k` or a plain number says. Raises UserError for other text.

    >>> parse_tokens("1.5M")
    1500000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", str(text).strip().lower().replace("_", ""), re.ASCII)
    tokens = float(match[1]) * TOKEN_UNITS[match[2]] if match else 0.0
    if not 1 <= tokens <= MOST_TOKENS:
        raise UserError(
            f"--tokens must be a number from 1 to {MOST_TOKENS:.0e}, like 500k or 1M, got {str(text)[:LONGEST_SHOWN]!r}"
        )
    return round(tokens)
