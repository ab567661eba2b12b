"""Sizes as people write them."""

from __future__ import annotations

import pytest

from mi_prun.errors import UserError
from mi_prun.sizes import parse_size, parse_tokens


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("5GB", 5 * 10**9),
        (" 500mb ", 5 * 10**8),
        ("10KB", 10_000),
        ("1.5 GiB", 3 * 2**29),
        ("24GiB", 24 * 2**30),
        ("77", 77),
        ("77B", 77),
    ],
)
def test_bytes_of_a_size(text: str, num_bytes: int) -> None:
    assert parse_size(text, "--size") == num_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "0.2", "-5GB", "5X", "GB", "nan", "inf", "1e3", "1_000", "5 G B", "٥GB", "9" * 400]
)
def test_what_is_no_size_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--size must be like 5GB or 500MB, got "):
        parse_size(text, "--size")


def test_a_unit_can_be_needed() -> None:
    with pytest.raises(UserError, match="--memory must be like 24GiB, got '24'"):
        parse_size("24", "--memory", "24GiB", needs_unit=True)
    assert parse_size("24GiB", "--memory", "24GiB", needs_unit=True) == 24 * 2**30


@pytest.mark.parametrize(
    ("text", "tokens"), [("1M", 10**6), ("500k", 500_000), ("2_000", 2_000), ("1.5b", 1.5e9), ("64", 64), (64, 64)]
)
def test_tokens(text: str | int, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "said"), [("9" * 400, "9{100}"), ("0", "0"), ("-1k", "-1k"), ("many", "many"), ("1e3", "1e3"), ("", "")]
)
def test_what_is_no_number_of_tokens_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"--tokens must be a number .*, got '{said}'$"):
        parse_tokens(text)
