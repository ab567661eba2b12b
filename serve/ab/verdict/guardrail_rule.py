"""A guardrail must hold of an arm, or the arm is given no more requests: `error_rate<1%`, `ttft_ms<1.2x`.

    guardrail = quantity ("<" | ">") bound
    quantity  = error_rate | agreement | logprob_difference_nats | ttft_ms | itl_ms | e2e_ms | tokens_per_s
              | output_tokens | (ttft | e2e) "_p" (50 .. 99) "_ms"
    bound     = number | number "%" | number "x"

`%` is of shares (error_rate, agreement); `x` is times the control's figure, of the means and of error_rate; a
percentile takes a number. Only logprob_difference_nats may be below 0. A guardrail is broken when the values that are
still possible, all looks considered, all break it: with several guardrails or arms the level is shared, so that the
chance to drain an arm that breaks none is alpha at most, however long it is watched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mi_prun.errors import UserError
from serve.ab.verdict.quantities import QUANTITIES

SHARES = ("error_rate", "agreement")
MIRRORED = ("agreement", "logprob_difference_nats")
NAMES = ("error_rate", *MIRRORED, *QUANTITIES)
FORM = re.compile(r"\s*([a-z0-9_]+?)\s*([<>])\s*(-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+))\s*([%x]?)\s*")
LEAST_ANSWER_MS = 2.0  # less is a ratio without its x
PERCENTILE = re.compile(r"(ttft|e2e)_p([5-9][0-9])_ms")
HELP = "it is QUANTITY<BOUND or QUANTITY>BOUND, as error_rate<1%, agreement>0.6, ttft_ms<1.2x, e2e_p95_ms<3000"

Standing = Literal["holds", "undecided", "broken"]
Kind = Literal["error_rate", "error_rate_ratio", "percentile", "agreement", "mean", "mean_ratio"]


@dataclass(frozen=True)
class GuardrailRule:
    """A guardrail as it was spelt.

    text: as it was given. bound: a share in [0, 1], a number, or with `relative` a factor of the control's figure.

    percentile: of the values of `quantity`, in (0, 1); None is the mean.
    """

    text: str
    quantity: str
    below: bool
    bound: float
    relative: bool = False
    percentile: float | None = None

    @property
    def kind(self) -> Kind:
        """How it is evaluated."""
        if self.percentile is not None:
            return "percentile"
        if self.quantity == "error_rate":
            return "error_rate_ratio" if self.relative else "error_rate"
        if self.quantity == "agreement":
            return "agreement"
        return "mean_ratio" if self.relative else "mean"

    @property
    def mirrored(self) -> bool:
        """Return whether it is about mirrored requests."""
        return self.quantity in MIRRORED

    def verdict(self, *, all_above: bool, all_below: bool) -> Standing:
        """Return the standing, by whether all values that are still possible are above the bound, or all below."""
        if all_above or all_below:
            return "holds" if all_below == self.below else "broken"
        return "undecided"


def parse_guardrail(text: str) -> GuardrailRule:
    """Return the rule that the text spells. Raises UserError."""
    match = FORM.fullmatch(text)
    if not match:
        raise UserError(f"guardrail {text!r}: {HELP}")
    quantity, sign, number, unit = match.groups()
    bound, below = float(number), sign == "<"
    if bound < 0 and quantity != "logprob_difference_nats":
        raise UserError(f"guardrail {text!r}: {quantity} is never below 0")
    percentile = PERCENTILE.fullmatch(quantity)
    if percentile and unit:
        raise UserError(f"guardrail {text!r}: a percentile is compared with a number of milliseconds")
    if not percentile and quantity not in NAMES:
        raise UserError(
            f"guardrail {text!r}: {quantity} is no quantity; there are {', '.join(NAMES)}, "
            "and percentiles as e2e_p95_ms"
        )
    if unit == "%":
        if quantity not in SHARES:
            raise UserError(
                f"guardrail {text!r}: % goes with shares only ({', '.join(SHARES)}); for a ratio to the control write "
                "1.2x"
            )
        bound /= 100
    if unit == "x" and quantity in MIRRORED:
        raise UserError(f"guardrail {text!r}: {quantity} already compares two arms; give a number without x")
    if quantity in SHARES and unit != "x" and not 0 <= bound <= 1:
        raise UserError(f"guardrail {text!r}: {quantity} is in 0..1 (0..100 %)")
    if below == (quantity == "agreement") and (quantity in SHARES or quantity.endswith("_ms")):
        raise UserError(
            f"guardrail {text!r}: it would drain the better arm; write {quantity}{'><'[not below]}{number}{unit}"
        )
    if quantity in SHARES and unit != "x" and bound == (1 if below else 0):
        raise UserError(
            f"guardrail {text!r}: {quantity} is in 0..1 (0..100 %), so it is never broken; for 1 % write 1%"
        )
    if unit != "x" and bound < LEAST_ANSWER_MS and quantity.startswith(("ttft", "e2e")):
        raise UserError(
            f"guardrail {text!r}: no answer begins within {number} ms; a mean over the control's is ttft_ms<{number}x"
        )
    if percentile:
        return GuardrailRule(text.strip(), f"{percentile[1]}_ms", below, bound, percentile=int(percentile[2]) / 100)
    return GuardrailRule(text.strip(), quantity, below, bound, relative=unit == "x")
