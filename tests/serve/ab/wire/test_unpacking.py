"""Packed bodies: what they may cost."""

from __future__ import annotations

import gzip

import pytest

from serve.ab.wire.unpacking import MOST_MEMBERS, DamagedBodyError, unpack


def test_members_are_put_together_up_to_a_bound() -> None:
    assert unpack(gzip.compress(b"a") + gzip.compress(b"b"), b"gzip", 10) == b"ab"
    assert unpack(gzip.compress(b"") * MOST_MEMBERS, b"gzip", 10) == b""
    with pytest.raises(DamagedBodyError):  # each one copies all that is behind it
        unpack(gzip.compress(b"") * (MOST_MEMBERS + 1), b"gzip", 10)
