"""The sample ratio: whether the arms get the requests that the split gives them.

Where they do not, requests are lost on the way to one of them, and no difference between the arms can be believed.
Clients are counted, not requests: a client's first request, or one that names no key. The next ones go where the first
went, and are no news. They are counted when the arm is asked: when an answer ends depends on the arm.
"""

from __future__ import annotations

import base64
import math
from hashlib import blake2b
from typing import Any

SEEN_BITS = 2**18  # at first; where two keys fall on one bit the second goes uncounted, in either arm alike
MOST_SEEN_BITS = 2**24  # 2.8 MB of each save, which then takes some 10 ms more
GROWTH = 8
GROWS_AT = {SEEN_BITS: 1 / 16, SEEN_BITS * GROWTH: 1 / 8}  # the share of bits that are set, by their number
TILTS = tuple(sign * tilt for tilt in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2) for sign in (-1, 1))  # of log odds
ODDS = tuple(map(math.exp, TILTS))
ALPHA = 0.01


class SeenKeys:
    """A set of keys in bounded memory, that may take a new one for a known one.

    A key sets one bit. Where too many are set, all bits are repeated: a known key stays known, and the share of bits
    that are set stays. New keys then have more bits to fall on.
    """

    def __init__(self, bits: bytes = bytes(SEEN_BITS // 8)) -> None:
        self._bits = bytearray(bits)
        self._set = int.from_bytes(bits).bit_count()

    @property
    def share_set(self) -> float:
        """The share of bits that are set: so many of the new keys are taken for known ones."""
        return self._set / (8 * len(self._bits))

    def is_new(self, key: str) -> bool:
        """Return whether the key is new; from now on it is not."""
        index = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % (8 * len(self._bits))
        byte, bit = index // 8, 1 << index % 8
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        self._set += 1
        if self.share_set > GROWS_AT.get(8 * len(self._bits), 1.0):
            self._bits *= GROWTH
            self._set *= GROWTH
        return True

    def state(self) -> str:
        return base64.b64encode(self._bits).decode("ascii")

    @classmethod
    def restored(cls, state: str) -> SeenKeys:
        bits = base64.b64decode(state)
        if 8 * len(bits) not in (*GROWS_AT, MOST_SEEN_BITS):
            raise ValueError(f"{len(bits)} bytes of keys, not {SEEN_BITS // 8} to {MOST_SEEN_BITS // 8}")
        return cls(bits)


class SampleRatio:
    """Clients of an arm among those of this arm and the control, and how well they fit the split.

    The test is a mixture of likelihood ratios, odds e^tilt times the split's against the split's own. It passes
    1 / alpha with probability alpha at most, ever, while the split is kept (Ville), whatever the split is at any time
    and however often it is changed. For a fixed split compare Lindon and Malek, Anytime-valid
    inference for multinomial count data, NeurIPS 2022.
    """

    def __init__(self) -> None:
        self.clients = 0
        self.arm_clients = 0
        self.expected = 0.0  # of them, by the split
        self._log_ratios = [0.0] * len(TILTS)
        self._largest = 0.0

    def add(self, is_arm: bool, probability: float) -> None:
        """Count a client.

        probability: with which the split sends a client of one of the two to the arm, in (0, 1).
        """
        self.clients += 1
        self.arm_clients += is_arm
        self.expected += probability
        for index, (tilt, odds) in enumerate(zip(TILTS, ODDS, strict=True)):
            self._log_ratios[index] += (tilt if is_arm else 0.0) - math.log1p(probability * (odds - 1))
        top = max(self._log_ratios)
        mixture = top + math.log(sum(math.exp(ratio - top) for ratio in self._log_ratios) / len(TILTS))
        self._largest = max(self._largest, mixture)

    @property
    def p_value(self) -> float:
        """The p-value, valid at every look at once."""
        return math.exp(-self._largest)

    def state(self) -> dict[str, Any]:
        """Return what JSON can hold; the names are those on disk."""
        return {
            "clients": self.clients,
            "arm_clients": self.arm_clients,
            "expected": self.expected,
            "log_ratios": self._log_ratios,
            "largest": self._largest,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> SampleRatio:
        """Return the counts whose `state` this is. Raises KeyError or ValueError for anything else."""
        ratio = cls()
        ratio.clients, ratio.arm_clients, ratio.expected = state["clients"], state["arm_clients"], state["expected"]
        ratio._log_ratios, ratio._largest = list(state["log_ratios"]), state["largest"]
        if len(ratio._log_ratios) != len(TILTS):
            raise ValueError(f"{len(ratio._log_ratios)} tilts, not {len(TILTS)}")
        return ratio
