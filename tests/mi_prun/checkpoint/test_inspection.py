from __future__ import annotations

import errno
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mi_prun.checkpoint import inspection
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import describe, verify
from mi_prun.checkpoint.manifest import FileDigest, Manifest
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Quality

QUALITY = Quality(
    text="books",
    protocol="windows of 8",
    window_tokens=8,
    windows=2,
    predicted_tokens=14,
    dense_perplexity=12.25,
    pruned_perplexity=14.5,
    kl_nats_per_token=0.125,
)


@pytest.fixture
def pruned(tiny, make_plan, tmp_path) -> Path:
    dense = tiny("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=3)
    plan = make_plan(dense, (1, 4)).model_copy(update={"quality": QUALITY})
    plan.write(tmp_path / "plan.json")
    write_checkpoint(open_model(dense), plan, tmp_path / "pruned", max_shard_bytes=40_000)
    return tmp_path / "pruned"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def redo_digest(folder: Path, name: str) -> None:
    """Make the manifest agree with a changed file, so that later checks are reached."""
    from hashlib import sha256

    manifest = Manifest.read(folder / "mi_prun.json")
    data = (folder / name).read_bytes()
    digest = FileDigest(num_bytes=len(data), sha256=sha256(data).hexdigest())
    manifest.model_copy(update={"files": manifest.files | {name: digest}}).write(folder / "mi_prun.json")


def test_a_folder_is_described(pruned):
    text = describe(pruned)
    for part in (
        "materialized checkpoint",
        "1, 4 (block indices are 0-based)",
        "2 of 6 blocks (33.3%)",
        "by hand",
        "12.25 -> 14.5",
        "KL 0.125",
        "FfFSsS",
        "whole        all",
    ):
        assert part in text
    assert "3, 4" not in text


def test_a_plan_is_described(pruned):
    text = describe(pruned.parent / "plan.json")
    assert "#.##.#" in text
    assert "1, 4 (block indices are 0-based)" in text


def test_the_card_and_the_map_say_the_same(pruned):
    card = (pruned / "README.md").read_text()
    assert "| perplexity | 12.25 | 14.5 |" in card
    assert "FfFSsS" in card
    assert "![block map](block_map.svg)" in card
    svg = (pruned / "block_map.svg").read_text()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert "block 4: dropped, sliding_attention" in svg
    assert svg.count(": kept, ") == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: flip(next(p.glob("*.safetensors")), -3),
            r"safetensors is not as it was written \(its sha256 differs",
        ),
        (lambda p: flip(p / "config.json", 5), "config.json is not as it was written"),
        (lambda p: next(p.glob("*.safetensors")).unlink(), "is missing"),
        (lambda p: (p / "config.json").write_text("{}"), "config.json has 2 bytes"),
        (lambda p: (p / "model-x.safetensors").write_text(""), "was added after the checkpoint was written"),
        (lambda p: (p / "modeling.py").write_text(""), "was added after the checkpoint was written"),
    ],
)
def test_damage_is_found(pruned, damage, message):
    verify(pruned)
    damage(pruned)
    with pytest.raises(UserError, match=message):
        verify(pruned)
    if "sha256" not in message and "not as it was" not in message:
        assert "not whole" in describe(pruned)


def test_a_file_that_cannot_be_read_is_one_line(pruned, monkeypatch):
    def unreadable(path, advance):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(inspection, "sha256_of", unreadable)
    with pytest.raises(UserError, match=r"README\.md cannot be read: Input/output error"):
        verify(pruned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"num_hidden_layers": 3, "layer_types": c["layer_types"][:3]}, "config.json has 3 blocks"),
        (lambda c: c | {"layer_types": c["layer_types"][:3]}, "'layer_types' must list 4 blocks"),
        (lambda c: c | {"mi_prun": c["mi_prun"] | {"dropped": [0, 4]}}, "does not agree with mi_prun.json"),
        (lambda c: c | {"mi_prun": 7}, "does not agree with mi_prun.json"),
    ],
)
def test_a_config_that_does_not_fit_the_plan_is_found(pruned, change, message):
    config = json.loads((pruned / "config.json").read_text())
    (pruned / "config.json").write_text(json.dumps(change(config)))
    redo_digest(pruned, "config.json")
    with pytest.raises(UserError, match=message):
        verify(pruned)


def test_tensors_that_do_not_fit_the_plan_are_found(tiny, make_plan, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    dense = tiny("llama")
    pruned = tmp_path / "pruned"
    write_checkpoint(open_model(dense), make_plan(dense, (1,)), pruned)
    tensors = load_file(pruned / "model.safetensors")
    save_file(tensors | {"model.layers.0.extra": torch.ones(2)}, pruned / "model.safetensors")
    redo_digest(pruned, "model.safetensors")
    with pytest.raises(UserError, match=r"the blocks have .* parameters, the plan keeps"):
        verify(pruned)
    save_file(tensors | {"extra": torch.ones(2)}, pruned / "model.safetensors")
    redo_digest(pruned, "model.safetensors")
    with pytest.raises(UserError, match="the shards hold"):
        verify(pruned)


def test_what_is_not_pruned_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"is not a pruned checkpoint \(no mi_prun.json\)"):
        describe(tiny("llama"))
    with pytest.raises(UserError, match="cannot read"):
        describe(tmp_path / "none")
    with pytest.raises(UserError, match="is not a folder"):
        verify(tmp_path / "none")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_manifest_may_not_name_files_outside(pruned, name):
    manifest = Manifest.read(pruned / "mi_prun.json")
    files = manifest.files | {name: FileDigest(num_bytes=1, sha256="x")}
    manifest.model_copy(update={"files": files}).write(pruned / "mi_prun.json")
    with pytest.raises(UserError, match="leads outside the folder"):
        verify(pruned)
