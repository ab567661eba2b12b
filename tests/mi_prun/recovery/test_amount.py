from __future__ import annotations

import pytest

from mi_prun.errors import UserError
from mi_prun.recovery.amount import parse_heal
from mi_prun.settings import HealSettings


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("fit", ("none", None, None)),
        ("10min", ("lora", None, 10.0)),
        ("1h", ("lora", None, 60.0)),
        ("30s", ("lora", None, 0.5)),
        ("1M", ("lora", 10**6, None)),
        ("500k", ("lora", 500_000, None)),
    ],
)
def test_heal_of_prune(text, wanted):
    settings = parse_heal(text, HealSettings())
    assert (settings.train, settings.tokens, settings.minutes) == wanted


@pytest.mark.parametrize("text", ["", "ten", "-1M", "10 weeks", "0", "0min", "99999999h", "10m", "10", "9" * 400])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(UserError, match="must be"):
        parse_heal(text, HealSettings())
