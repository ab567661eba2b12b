"""A number of bytes as people write it."""

from __future__ import annotations

import pytest

from mi_prun.byte_size import parse_bytes
from mi_prun.errors import UserError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500 mb", 500 * 10**6),
        ("10KB", 10**4),
        ("2TB", 2 * 10**12),
        ("24GiB", 24 * 2**30),
        ("1.5MiB", 3 * 2**19),
        (" 1.5 gb", 1_500_000_000),
    ],
)
def test_units(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory", like="24GiB") == size
    assert parse_bytes(text, "--max-shard-size", like="5GB", bare=True) == size


def test_a_bare_number() -> None:
    for text in ("4096", "4096B"):
        assert parse_bytes(text, "--max-shard-size", like="5GB", bare=True) == 4096
        with pytest.raises(UserError, match=f"--memory must be like 24GiB, got '{text}'"):
            parse_bytes(text, "--memory", like="24GiB")


@pytest.mark.parametrize("text", ["", "GB", "0", "0GB", "-2GiB", "nan", "infGB", "1e999GB", "5XB", "5 5GB"])
def test_what_is_no_size(text: str) -> None:
    for bare in (True, False):
        with pytest.raises(UserError, match="--size must be like 5GB, got"):
            parse_bytes(text, "--size", like="5GB", bare=bare)
