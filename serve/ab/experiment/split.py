"""The split assigns a key to an arm, by weighted rendezvous hashing.

Each arm draws u in (0, 1) from a hash of (experiment, key, arm) and scores -w / ln u, w its weight; the highest score
wins, with probability w / sum of the weights (Mosko; "Weighted distributed hash tables", Schindelhauer and Schomaker,
SPAA 2005). An arm's score depends on no other arm's weight: when one weight changes, keys move only to or from that
arm, and no more of them than the shares themselves move.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from hashlib import blake2b

SCALE = 2.0**53


def unit(experiment: str, key: str, arm: str) -> float:
    """Return a number in (0, 1), the same on every machine.

    Parts are told apart by their length, not by a separator.
    """
    parts = [part.encode("utf-8", "surrogatepass") for part in (experiment, key, arm)]
    digest = blake2b(b"".join(len(part).to_bytes(8, "big") + part for part in parts), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 11) + 0.5) / SCALE


def ranking(experiment: str, key: str, weights: Mapping[str, float]) -> list[str]:
    """Return all arms, the one that the key belongs to first.

    Those of weight 0 come last: drained, still there to fail over to.
    """
    draws = {arm: unit(experiment, key, arm) for arm in weights}
    return sorted(weights, key=lambda arm: (weights[arm] / math.log(draws[arm]), -draws[arm]))


def random_key() -> str:
    """Return a key for a request that names none: a draw of its own."""
    return secrets.token_hex(8)


def key_hash(key: str) -> str:
    """Return what a log may say of a sticky key: keys can be told apart by it, not read."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=b"mi-prun-ab").hexdigest()
