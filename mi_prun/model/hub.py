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
HUB_IGNORED = ("*/*.json", "*/*.txt", "*/*.model*")  # of the same weights in another layout
OF_THE_REQUEST = re.compile(r"([0-9]{3} (Client|Server) Error\.?)?\s*(\(Request ID: [^)]*\))?")
HUB_ID = re.compile(r"(?P<name>[^/.~@][^/@]*/[^/@]+)(@(?P<commit>[0-9a-f]{40}))?")


def fetch(reference: str, weights: Sequence[str], *, revision: str | None = None) -> Path:
    """Fetch a hub id and return its folder in the cache.

    weights: the files of weights to fetch.
    revision: a branch, tag or commit, if `reference` names none.
    Raises UserError for what is no hub id, or cannot be fetched.
    """
    named = HUB_ID.fullmatch(reference)
    if named is None:
        exact = "; behind an @ stands a whole commit, 40 digits of 0-9 and a-f" if "@" in reference else ""
        raise UserError(f"model {reference}: no such folder, and not a hub id (owner/name){exact}")
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision = named["commit"] or revision
    patterns = (*SMALL_PATTERNS, *map(glob.escape, weights))
    try:
        return Path(
            snapshot_download(
                named["name"],
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(HUB_IGNORED),
            )
        )
    except Exception as error:  # its own, its HTTP library's and the disk's
        if isinstance(error, LocalEntryNotFoundError):  # without a network; what is missing may be a README
            wanted = ("config.json", *weights)
            files = [try_to_load_from_cache(named["name"], file, revision=revision) for file in wanted]
            if all(isinstance(file, str) for file in files):
                return Path(str(files[0])).parent
        raise UserError(f"model {reference}: no such folder, and the hub did not give it: {_said(error)}") from error


def _said(error: Exception) -> str:
    """Return what a hub's error says: the line behind the status and the request's id, and the way out."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(cause := error.__cause__, HfHubHTTPError):  # `snapshot_download` looks for the model on the disk then
        error = cause
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in lines if not OF_THE_REQUEST.fullmatch(line)), first_line(error))
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        said += " If it is private or gated: ask for access on its page, and set HF_TOKEN."
    return said


def at_commit(reference: str, folder: Path) -> str:
    """Return `owner/name@commit`, the hub id of exactly what lies in `folder`, which `fetch` gave."""
    exact = f"{reference.partition('@')[0]}@{folder.name}"
    return exact if HUB_ID.fullmatch(exact) else reference
