"""Parse a number of bytes as people write it."""

from __future__ import annotations

from mi_prun.errors import UserError

UNITS = {
    f"{letter}{end}": base**power for power, letter in enumerate("KMGT", 1) for end, base in (("IB", 1024), ("B", 1000))
}


def parse_bytes(text: str, option: str, *, like: str, bare: bool = False) -> int:
    """Return the bytes of `24GiB`, `1.5GB` or `500MB`; GB is a power of ten, GiB a power of two.

    option, like: named in the error. bare: whether a number without a unit is bytes. Raises UserError.
    """
    upper = text.strip().upper()
    unit = next((unit for unit in (*UNITS, "B") if upper.endswith(unit)), "")
    factor = UNITS.get(unit, 1)
    try:
        size = round(float(upper.removesuffix(unit)) * factor) if factor > 1 or bare else 0
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UserError(f"{option} must be like {like}, got {text!r}")
    return size
