"""Names of blocks inside `quantization_config` follow their blocks.

Such names stand in compressed-tensors' `ignore` and `targets`, FP8's and AWQ's `modules_to_not_convert`, GPTQ's
`dynamic` and AutoRound's `extra_config`, as values or as keys:

- A module's name is renumbered, and left out where its block is dropped.
- A pattern that spells out one block's number is renumbered too.
- A pattern about several blocks, or perhaps about another tower's, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mi_prun.errors import UserError

Rename = Callable[[str], str | None]

# In a pattern: the container of the blocks, a dot (perhaps escaped), and what stands for the number.
NUMBERED = re.compile(r"(?<![A-Za-z0-9_])(?:layers|h)\\?\.(?P<number>\\d(?:[+*]|\{[^}]*\})?|[^.\\$]*)")
ANY_NUMBER = ("", "*", ".*", ".+", r"\d+", r"\d*", "[0-9]+", "[0-9]*", "(.*)", "([0-9]+)")
AFTER_NUMBER = re.compile(r"\\?\.|\\b|\$|\Z")  # otherwise the number goes on: `1\d`, `\d\d`
# Numbers that are no block's: an expert's, or one of another tower or of multi-token prediction.
OTHERS_NUMBER = re.compile(
    r"(?P<whose>experts|blocks|mtp|merger|mlp\\?\.\(?)(?P<dot>\\?\.)?"
    r"\(?(?:[0-9]+(?:\|[0-9]+)*|(?:\\d|\[0-9\])(?:[*+]|\{[^}]*\})?)\)?"
)
IN_A_WORD = re.compile(r"(?<=[A-Za-z0-9_])\[[^].]*\]")
# Any other number that stands by itself, not in a word (w1, fc2): it may be a block's.
OTHER_NUMBER = re.compile(r"(?<![A-Za-z0-9_])(?:[0-9]|\\d|\[[^\]]*[0-9\\][^\]]*\])")
DESCRIBING = ("meta", "dataset", "tokenizer", "uri")  # keys of how it was made; they name no module
_DROPPED = object()


def reduce_quantization(config: Any, rename_block: Rename, rename: Rename, *, tower: str | None = None) -> Any:
    """Return the `quantization_config` of the pruned model.

    rename: gives a module's full name in the pruned model, None where its block is dropped.
    rename_block: gives a block's new number as text, None where it is dropped.
    tower: a part of the text model's name, where the model has several towers.
    """

    def name(text: str) -> Any:
        if not _is_pattern(text):
            new = rename(text)
            return _DROPPED if new is None else new
        numbered = list(NUMBERED.finditer(text))
        rest = text
        for match in reversed(numbered):
            start, end = match.span("number")
            if match["number"] and not AFTER_NUMBER.match(text, end):
                raise _about_numbers(text)
            rest = rest[:start] + rest[end:]
        if OTHER_NUMBER.search(IN_A_WORD.sub("", OTHERS_NUMBER.sub("", rest))):
            raise _about_numbers(text)
        fixed = [match for match in numbered if match["number"] not in ANY_NUMBER]
        if not fixed:
            return text
        number = fixed[0]["number"]
        ours = tower is None or tower in text[: fixed[0].start()]
        if len(fixed) > 1 or not number.isdecimal() or not ours:
            raise _about_numbers(text)
        block = rename_block(number)
        if block is None:
            return _DROPPED
        start, end = fixed[0].span("number")
        return text[:start] + block + text[end:]

    def reduce(value: Any) -> Any:
        if isinstance(value, str):
            return name(value)
        if isinstance(value, list):
            return [new for new in map(reduce, value) if new is not _DROPPED]
        if isinstance(value, dict):
            pairs = ((name(key), inner if _describes(key) else reduce(inner)) for key, inner in value.items())
            return {key: inner for key, inner in pairs if key is not _DROPPED and inner is not _DROPPED}
        return value

    return reduce(config)


def _describes(key: str) -> bool:
    return key in DESCRIBING or "version" in key


def _about_numbers(pattern: str) -> UserError:
    return UserError(
        f"quantization_config has the pattern {pattern!r}, which is about blocks by their number, or may be; not "
        "supported: prune first, then quantise"
    )


def _is_pattern(text: str) -> bool:
    """Return whether a name is a pattern. With a space or a slash it is a sentence or a path, and names no module."""
    if text.startswith(("re:", "+:", "-:")):
        return True
    return any(character in text for character in "*\\^$[](|+?") and not any(character in text for character in " /")
