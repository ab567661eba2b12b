"""Flags for mi-prun-serve, as the bench reads them."""

from __future__ import annotations

from collections.abc import Sequence

from mi_prun.errors import UserError

RESERVED_FLAGS = ("--model", "--host", "--port", "--uds", "--config", "--served-model-name", "--api-key", "--plan")


def flag_name(word: str) -> str:
    """`--max-model-len` of `--max_model_len=512`: vLLM takes either spelling."""
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def has_flag(flags: Sequence[str], name: str) -> bool:
    return any(flag_name(flag) == name for flag in flags)


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """Of `NAME VALUE` or `NAME=VALUE`, the last one; None where it is not among them."""
    found = None
    for place, flag in enumerate(flags):
        if flag_name(flag) == name:
            _, equals, value = flag.partition("=")
            found = value if equals else next(iter(flags[place + 1 : place + 2]), None)
    return found


def check_flags(flags: Sequence[str]) -> None:
    """Refuse flags that the bench sets itself. Raises UserError."""
    for name in map(flag_name, flags):
        if name in RESERVED_FLAGS:
            raise UserError(f"--serve-flags may not hold {name}: the bench chooses it")
