"""Read and check flags for mi-prun-serve."""

from __future__ import annotations

from collections.abc import Sequence

from mi_prun.errors import UserError

RESERVED_FLAGS = (
    "--model", "--host", "--port", "--uds", "--config", "--served-model-name", "--api-key", "--plan",
    "--draft", "--adapter",
)  # fmt: skip
PREFIX_CACHING = ("--enable-prefix-caching", "--no-enable-prefix-caching")


def flag_name(word: str) -> str:
    """Return the name of a flag in vLLM's usual spelling: `--max-model-len` for `--max_model_len=512`."""
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def has_flag(flags: Sequence[str], name: str) -> bool:
    """Tell whether a flag is among `flags`, in either spelling."""
    return any(flag_name(flag) == name for flag in flags)


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """Return the last value given as `NAME VALUE` or `NAME=VALUE`; None where the flag is not there."""
    last = None
    for place, flag in enumerate(flags):
        if flag_name(flag) == name:
            _, equals, value = flag.partition("=")
            last = value if equals else next(iter(flags[place + 1 : place + 2]), None)
    return last


def measured_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """Return the flags of engines that are measured: without a prefix cache, unless `flags` say.

    Random prompts can be alike, and a pruned engine remembers more of them.
    """
    said = any(has_flag(flags, name) for name in PREFIX_CACHING)
    return (*flags, *(() if said else PREFIX_CACHING[1:]))


def check_flags(flags: Sequence[str]) -> None:
    """Refuse flags that the bench sets itself. Raises UserError."""
    for name in map(flag_name, flags):
        if name in RESERVED_FLAGS:
            raise UserError(f"--serve-flags may not hold {name}: the bench chooses it")
