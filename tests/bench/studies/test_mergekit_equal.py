"""The recipe that mergekit is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bench.studies.mergekit_equal import main, recipe


def test_the_recipe_is_a_passthrough_of_them() -> None:
    parsed = yaml.safe_load(recipe(Path("/m"), (0, 2)))
    assert parsed["merge_method"] == "passthrough"
    assert [part["sources"] for part in parsed["slices"]] == [
        [{"model": "/m", "layer_range": [0, 1]}],
        [{"model": "/m", "layer_range": [2, 3]}],
    ]


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        ("x", "error: --drop 'x': 'x' is not a block index; write it like 5,6,9 or 5-7"),
        ("40", "error: --drop '40': blocks are 0..11 (0-based), got 40"),
    ],
)
def test_blocks_that_are_none_are_refused_in_one_line(
    drop: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mergekit_equal", "--mergekit", "mergekit-yaml", "--drop", drop])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [said]
