"""What tells one model from another: config and weights, wherever they lie and however they are cut into files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mi_prun.model import model_folder
from mi_prun.model.model_folder import open_model


@pytest.fixture
def dense(tiny) -> Path:
    path = tiny("llama", max_shard_size="40KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def test_identity_tells_weights_and_config_apart_but_not_the_place(dense, tmp_path):
    was = open_model(dense).identity
    assert was.num_blocks == 6
    assert was.num_parameters == sum(was.block_parameters) + 2 * 97 * 32 + 32
    moved = shutil.copytree(dense, tmp_path / "moved")
    assert was.same_model(open_model(moved).identity)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    changed = open_model(moved).identity
    assert changed.config_sha256 != was.config_sha256
    assert changed.weights_sha256 == was.weights_sha256
    shard = sorted(dense.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert open_model(dense).identity.weights_sha256 != was.weights_sha256


def test_identity_does_not_depend_on_the_sharding(tiny):
    many, one = tiny("qwen2", max_shard_size="40KB"), tiny("qwen2", folder="one")
    assert open_model(many).identity.same_model(open_model(one).identity)


def test_of_blocks_that_are_not_kept_no_byte_is_read(tiny):
    """By the kernel's count of what this process asked for: the samples of the other tensors, and nothing more."""
    dense = tiny("llama", tie_word_embeddings=False)
    identity, kept = open_model(dense).identity, (0, 3, 4)
    model = open_model(dense)  # not the one that was digested: it knows the digests already

    def asked_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = asked_bytes()
    nothing = asked_bytes() - before
    before = asked_bytes()
    assert model.differing_part(identity, kept) is None
    found = asked_bytes() - before - nothing
    gone = tuple(f"model.layers.{block}." for block in (1, 2, 5))
    sampled = {name: 2 * min(1024, info.num_bytes) for name, (_, info) in model.tensors.items()}
    assert found == sum(count for name, count in sampled.items() if not name.startswith(gone))


def test_only_kept_blocks_tell_a_model_apart(tiny):
    dense = tiny("llama", tie_word_embeddings=False)
    identity = open_model(dense).identity
    for name, kept, differs in (
        ("model.layers.2.mlp.up_proj.weight", (0, 1), None),
        ("model.layers.2.mlp.up_proj.weight", (0, 2), "weights"),
        ("model.norm.weight", (0, 1), "weights"),
    ):
        path, info = open_model(dense).tensors[name]
        was = path.read_bytes()
        path.write_bytes(was[: info.begin] + bytes([was[info.begin] ^ 1]) + was[info.begin + 1 :])
        assert open_model(dense).differing_part(identity, kept) == differs
        path.write_bytes(was)


def test_it_is_computed_once(dense, monkeypatch):
    calls = []
    digest = model_folder.weight_digests
    monkeypatch.setattr(model_folder, "weight_digests", lambda *words: calls.append(words) or digest(*words))
    model = open_model(dense)
    assert model.identity is model.identity
    assert model.differing_part(model.identity, (0, 1)) is None
    assert len(calls) == 1
