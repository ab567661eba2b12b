"""A model on the hub: which of its files are fetched into huggingface_hub's cache.

A model is named `owner/name` or `owner/name@commit`. What we write down names the commit, because a model may change.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from mi_prun.errors import UserError, first_line

# Config, weights, and all that comes along (`companions`). The hub's patterns are case-sensitive.
SMALL_PATTERNS = (
    "*.json", "*.txt", "*.model*", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "README*",
    *(f"{case}*" for word in ("license", "licence", "notice", "copying")
      for case in (word, word.upper(), word.title())),
    "*use_policy*", "*USE_POLICY*", "*acceptable_use*", "*ACCEPTABLE_USE*",
)  # fmt: skip
HUB_PATTERNS = (*SMALL_PATTERNS, "*.safetensors")
HUB_IGNORED = ("*/*.safetensors", "consolidated*.safetensors")  # the same weights in another layout
HUB_ID = re.compile(r"(?P<name>[^/.~@][^/@]*/[^/@]+)(@(?P<commit>[0-9a-f]{40}))?")


def fetch(reference: str, weights: Sequence[str] | None = None, *, revision: str | None = None) -> Path:
    """Fetch a hub id and return its folder in the cache.

    weights: the files of weights to fetch; None: all of them.
    revision: a branch, tag or commit, if `reference` names none.
    Raises UserError for what is no hub id, or cannot be fetched.
    """
    named = HUB_ID.fullmatch(reference)
    if named is None:
        raise UserError(f"model {reference}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    patterns = HUB_PATTERNS if weights is None else (*SMALL_PATTERNS, *map(glob.escape, weights))
    try:
        return Path(
            snapshot_download(
                named["name"],
                revision=named["commit"] or revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(HUB_IGNORED),
            )
        )
    except Exception as error:  # its own, its HTTP library's and the disk's
        first = first_line(error)
        raise UserError(f"model {reference}: no such folder, and the hub did not give it: {first}") from error


def at_commit(reference: str, folder: Path) -> str:
    """Return `owner/name@commit`, the hub id of exactly what lies in `folder`, which `fetch` gave."""
    exact = f"{reference.partition('@')[0]}@{folder.name}"
    return exact if HUB_ID.fullmatch(exact) else reference
