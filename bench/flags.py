"""Flags for mi-prun-serve, as the bench reads them."""

from __future__ import annotations

from collections.abc import Sequence


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """Of `NAME VALUE` or `NAME=VALUE`; None where it is not among them."""
    words = [part for flag in flags for part in flag.split("=", 1)]
    return words[words.index(name) + 1] if name in words[:-1] else None
