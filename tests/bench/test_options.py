"""What the texts of shared options say."""

from __future__ import annotations

import pytest

from bench.options import concurrency_of, engines_alive, flags_of, names, rates_of
from mi_prun.errors import UserError


def test_lists() -> None:
    assert names(" a, b,,c ") == ("a", "b", "c")
    assert concurrency_of("1,8,8,64") == (1, 8, 64)
    assert rates_of(".5,1,.5") == (0.5, 1.0)
    assert (rates_of("auto"), rates_of("none")) == ("auto", ())
    assert flags_of("--a 'b c' --d=e") == ("--a", "b c", "--d=e")
    assert (engines_alive("auto"), engines_alive("alone"), engines_alive("together")) == (None, "alone", "together")


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (concurrency_of, "1,x", "--concurrency '1,x' must be whole numbers, like 1,8,64"),
        (rates_of, "fast", "--rates 'fast' must be requests/s like .5,1,2, or auto, or none"),
        (flags_of, "--a 'b", "--serve-flags"),
        (engines_alive, "both", "--engines must be together, alone or auto, got 'both'"),
    ],
)
def test_what_they_cannot_say(parse: object, text: str, said: str) -> None:
    assert callable(parse)
    with pytest.raises(UserError) as raised:
        parse(text)
    assert str(raised.value).startswith(said)
