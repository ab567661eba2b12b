from __future__ import annotations

import pytest

from mi_prun.checkpoint.manifest import FileDigest, Manifest, config_entry, is_pruned
from mi_prun.errors import UserError
from mi_prun.model.identity import ModelIdentity
from mi_prun.plan.plan import Plan

DENSE = ModelIdentity(
    name="owner/dense",
    model_type="llama",
    num_blocks=3,
    num_parameters=40,
    block_parameters=(10, 10, 10),
    config_sha256="c",
    weights_sha256="w",
)
PLAN = Plan(dense=DENSE, dropped=(1,), kept=(0, 2), method="by hand")


def test_round_trip(tmp_path):
    manifest = Manifest(
        plan=PLAN,
        weights="materialized",
        weight_bytes=60,
        dense_weight_bytes=80,
        files={"model.safetensors": FileDigest(num_bytes=64, sha256="x")},
    )
    assert not is_pruned(tmp_path)
    manifest.write(tmp_path / "mi_prun.json")
    assert is_pruned(tmp_path)
    assert Manifest.read(tmp_path / "mi_prun.json") == manifest


def test_a_kind_for_each_block_or_none():
    whole = Manifest(
        plan=PLAN, weights="virtual", weight_bytes=60, dense_weight_bytes=80, files={}, block_kinds=("a", "b", "a")
    )
    damaged = whole.to_json().replace('"b",', "")
    with pytest.raises(UserError, match=r"^x: field top level: .*block_kinds has 2 entries for 3 blocks$"):
        Manifest.parse(damaged, origin="x")


def test_a_plan_is_no_manifest(tmp_path):
    PLAN.write(tmp_path / "mi_prun.json")
    with pytest.raises(UserError, match=r"is not a manifest file .found 'plan'"):
        Manifest.read(tmp_path / "mi_prun.json")


def test_the_entry_of_the_config():
    assert config_entry(PLAN, "virtual", "owner/dense") == {
        "base": "owner/dense",
        "dropped": [1],
        "kept": [0, 2],
        "weights": "virtual",
    }
