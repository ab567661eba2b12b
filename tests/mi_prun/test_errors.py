"""One line of another library's error, that says what it is."""

from __future__ import annotations

import pytest

from mi_prun.errors import UserError, first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\n  a shape is wrong \nmore\n"), "a shape is wrong"),
        (ValueError("Validation error for field 'x':\n    TypeError: expected int\nmore"),
         "Validation error for field 'x': TypeError: expected int"),
        (ValueError("it ends here:"), "it ends here:"),
        (KeyError("garbage"), "KeyError: 'garbage'"),
        (ValueError(), "ValueError"),
        (ValueError("\n \n"), "ValueError"),
    ],
)  # fmt: skip
def test_the_first_line_that_says_something(error: Exception, said: str) -> None:
    assert first_line(error) == said


def test_line_breaks_in_a_name_are_none_in_the_message() -> None:
    assert str(UserError("model a\nb: refused")) == "model a b: refused"
