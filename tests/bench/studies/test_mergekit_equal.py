"""The slices and the recipe that mergekit is given."""

from __future__ import annotations

from pathlib import Path

import yaml

from bench.studies.mergekit_equal import recipe, slices_of


def test_runs_of_kept_blocks() -> None:
    assert slices_of((0, 1, 2, 5, 7, 8)) == [[0, 3], [5, 6], [7, 9]]
    assert slices_of(()) == []


def test_the_recipe_is_a_passthrough_of_them() -> None:
    parsed = yaml.safe_load(recipe(Path("/m"), (0, 2)))
    assert parsed["merge_method"] == "passthrough"
    assert [part["sources"] for part in parsed["slices"]] == [
        [{"model": "/m", "layer_range": [0, 1]}],
        [{"model": "/m", "layer_range": [2, 3]}],
    ]
