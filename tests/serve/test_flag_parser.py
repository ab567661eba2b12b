from __future__ import annotations

import pytest

from mi_prun.errors import UserError
from serve.flag_parser import FlagParser


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "x"], "argument --port: invalid int value: 'x'; `mi-prun-x --help` lists the flags"),
        (["--por", "1"], "unrecognized arguments: --por 1; `mi-prun-x --help` lists the flags"),
    ],
)
def test_a_wrong_flag_is_one_line(words: list[str], said: str) -> None:
    parser = FlagParser("mi-prun-x")
    parser.add_argument("--port", type=int)
    assert parser.parse_args(["--port", "1"]).port == 1
    with pytest.raises(UserError) as refused:
        parser.parse_args(words)
    assert str(refused.value) == said
