"""What is kept of a benchmark's result, and that failed requests end it."""

from __future__ import annotations

import pytest

from bench.load.worker import check, plain


def test_the_lists_are_left_out_but_for_what_piles_up() -> None:
    starts = [float(n) for n in range(40)]
    result = {
        "duration": 40.0,
        "completed": 40,
        "backend": "openai",
        "start_times": starts,
        "ttfts": [0.1] * 40,
        "itls": [[0.1, 0.2]] * 40,
        "errors": [""] * 40,
    }
    kept = plain(result)
    assert kept.pop("backlog_growth") == pytest.approx(0.0, abs=0.05)  # 0.4 s each, one a second: it keeps up
    assert kept == {"duration": 40.0, "completed": 40, "backend": "openai"}
    slow = plain(result | {"ttfts": [n / 2 for n in range(40)]})
    assert slow["backlog_growth"] > 0.2
    assert "backlog_growth" not in plain({"completed": 3, "start_times": [1.0, 2.0, 3.0]})


def test_failed_requests_end_it() -> None:
    check({"failed": 0, "completed": 4})
    with pytest.raises(SystemExit, match="error: 2 of 4 requests failed: Connection refused"):
        check({"failed": 2, "completed": 2, "errors": ["", "Traceback\nConnection refused\n"]})
    with pytest.raises(SystemExit, match="error: 1 of 1 requests failed: no reason given"):
        check({"failed": 1, "completed": 0})
