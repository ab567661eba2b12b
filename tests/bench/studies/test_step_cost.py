"""What a line through steps says. The measurement itself runs two engines: see bench/published/sweep/step.json."""

from __future__ import annotations

import pytest

from bench.studies.step_cost import main, summary


def test_the_line_parts_blocks_head_and_engine() -> None:
    """Blocks of 10 MB in 1 ms; a head of 20 MB, 2 ms at that rate; 3 ms that are nobody's bytes."""
    counts = (4, 8, 16)
    line = summary({n: n * 1.0 + 5.0 for n in counts}, {n: 10_000_000 * n + 20_000_000 for n in counts})
    assert (line["block_ms"], line["rest_ms"], line["read_gb_per_s"]) == (1.0, 5.0, 10.0)
    assert (line["rest_for_its_bytes_ms"], line["engine_ms"]) == (2.0, 3.0)
    assert line["speedup"] == {"of": [16, 8], "measured": 1.6154, "by_the_line": 1.6154, "bound": 1.8}


@pytest.mark.parametrize(
    ("blocks", "said"), [("24", "two numbers"), ("24,x", "must be numbers"), ("25,24", "1 to 24 blocks")]
)
def test_numbers_of_blocks_that_will_not_do(
    blocks: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["step_cost", "--blocks", blocks, "-o", "never.json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
