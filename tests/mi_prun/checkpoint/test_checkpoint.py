from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mi_prun.checkpoint import checkpoint
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import verify
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model

SLIDING = {"use_sliding_window": True, "sliding_window": 4}
CASES = [
    ("llama", {"tie_word_embeddings": True}, (0, 3)),
    ("llama", {"tie_word_embeddings": False}, (4, 5)),
    ("mistral", {"sliding_window": 4}, (1, 2)),
    ("qwen2", {"tie_word_embeddings": True}, (2,)),
    ("qwen2", {**SLIDING, "max_window_layers": 3}, (0, 4)),
    ("qwen2", {**SLIDING, "max_window_layers": 4}, (4, 5)),
    ("qwen2", {**SLIDING, "max_window_layers": 2}, (0, 1)),
    ("qwen3", {"tie_word_embeddings": False, "head_dim": 8}, (0, 5)),
    ("qwen3", {**SLIDING, "max_window_layers": 3, "head_dim": 8}, (1, 3, 5)),
]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 - not a dict
    return found


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 30_000], ids=["single", "sharded"])
@pytest.mark.parametrize(("model_type", "fields", "dropped"), CASES)
def test_stock_transformers_reads_the_dense_model_without_those_blocks(
    tiny, make_plan, assert_same_as_skipping, tmp_path, model_type, fields, dropped, max_shard_bytes
):
    dense = tiny(model_type, max_shard_size="40KB" if max_shard_bytes == 30_000 else "5GB", **fields)
    before = digests(dense)
    pruned = tmp_path / "pruned"
    manifest = write_checkpoint(open_model(dense), make_plan(dense, dropped), pruned, max_shard_bytes=max_shard_bytes)
    assert_same_as_skipping(dense, pruned, dropped)
    assert digests(dense) == before
    assert (pruned / "model.safetensors").exists() == (max_shard_bytes > 30_000)
    assert ("lm_head.weight" in tensors_of(pruned)) == ("lm_head.weight" in tensors_of(dense))
    assert Manifest.read(pruned / "mi_prun.json") == manifest
    verify(pruned)


def test_a_prefix_of_window_layers_is_counted_where_the_config_has_no_layer_types(
    tiny, make_plan, assert_same_as_skipping, tmp_path
):
    dense = tiny("qwen2", **SLIDING, max_window_layers=3)
    config = json.loads((dense / "config.json").read_text())
    del config["layer_types"]
    (dense / "config.json").write_text(json.dumps(config))
    write_checkpoint(open_model(dense), make_plan(dense, (0, 5)), tmp_path / "pruned")
    assert_same_as_skipping(dense, tmp_path / "pruned", (0, 5))
    assert json.loads((tmp_path / "pruned/config.json").read_text())["max_window_layers"] == 2


def test_bytes_and_dtypes_are_those_of_the_source(tiny, make_plan, tmp_path):
    dense = tiny("llama", dtype=torch.bfloat16, max_shard_size="20KB")
    write_checkpoint(open_model(dense), make_plan(dense, ()), tmp_path / "same", max_shard_bytes=25_000)
    was, now = tensors_of(dense), tensors_of(tmp_path / "same")
    assert was.keys() == now.keys()
    assert all(now[name].dtype == torch.bfloat16 and torch.equal(was[name], now[name]) for name in was)
    index = json.loads((tmp_path / "same/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in now.values())
    assert index["weight_map"].keys() == now.keys()
    assert open_model(tmp_path / "same").identity.weights_sha256 == open_model(dense).identity.weights_sha256


def test_a_tied_head_that_the_source_holds_is_written_once(tiny, make_plan, assert_same_as_skipping, tmp_path):
    from safetensors.torch import save_file

    dense = tiny("llama", tie_word_embeddings=True)
    tensors = tensors_of(dense)
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        dense / "model.safetensors",
        {"format": "pt"},
    )
    write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned")
    assert sorted(tensors_of(tmp_path / "pruned"))[0] == "lm_head.weight"
    assert_same_as_skipping(dense, tmp_path / "pruned", (1,))


def test_mixed_dtypes_stay_aligned(tiny, make_plan, tmp_path):
    from safetensors.torch import save_file

    dense = tiny("llama")
    odd = {"model.layers.0.scale": torch.arange(3, dtype=torch.uint8), "z": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors_of(dense) | odd, dense / "model.safetensors", {"format": "pt"})
    write_checkpoint(open_model(dense), make_plan(dense, (5,)), tmp_path / "pruned")
    shard = open_model(tmp_path / "pruned").shards[0]
    assert all(info.begin % {"F32": 4, "BF16": 2, "U8": 1}[info.dtype] == 0 for info in shard.tensors.values())
    assert torch.equal(tensors_of(tmp_path / "pruned")["model.layers.0.scale"], odd["model.layers.0.scale"])


def test_what_comes_along_and_what_stays_behind(tiny, make_plan, tmp_path):
    dense = tiny("llama")
    along = ["tokenizer.json", "tokenizer.model", "tiktoken.model", "chat_template.jinja", "LICENSE", "NOTICE.txt",
             "USE_POLICY.md", "preprocessor_config.json", "additional_chat_templates/tool_use.jinja"]  # fmt: skip
    behind = [
        "modeling_custom.py",
        "README.md",
        "pytorch_model.bin",
        "optimizer.pt",
        "params.json",
        ".env",
        "train.log",
    ]
    (dense / "additional_chat_templates").mkdir()
    for name in (*along, *behind):
        (dense / name).write_text(f"---\nlicense: mit\n---\ncontent of {name}")
    manifest = write_checkpoint(open_model(dense), make_plan(dense, (2,)), tmp_path / "pruned")
    found = {file.relative_to(tmp_path / "pruned").as_posix() for file in (tmp_path / "pruned").rglob("*")}
    assert set(along) | {"config.json", "generation_config.json", "mi_prun.json"} <= found
    assert not (set(behind) - {"README.md"}) & found
    assert set(manifest.files) == found - {"mi_prun.json", "additional_chat_templates"}
    card = (tmp_path / "pruned/README.md").read_text()
    assert 'license: "mit"' in card
    assert "content of" not in card
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (tmp_path / "pruned/config.json").read_text()


def test_virtual_holds_no_weights_and_names_its_base(tiny, make_plan, tmp_path):
    dense = tiny("qwen3", **SLIDING, max_window_layers=3, head_dim=8)
    manifest = write_checkpoint(open_model(dense), make_plan(dense, (0, 4)), tmp_path / "v", virtual=True)
    config = json.loads((tmp_path / "v/config.json").read_text())
    assert config["mi_prun"] == {"base": str(dense), "dropped": [0, 4], "kept": [1, 2, 3, 5], "weights": "virtual"}
    assert (config["num_hidden_layers"], len(config["layer_types"]), config["max_window_layers"]) == (4, 4, 2)
    assert not list((tmp_path / "v").glob("*.safetensors*"))
    assert manifest.weight_bytes < manifest.dense_weight_bytes
    verify(tmp_path / "v")
    with pytest.raises(UserError, match=r"virtual checkpoint .* name its dense model"):
        open_model(tmp_path / "v")


def test_a_hub_id_is_the_base_model_of_the_card_and_of_the_config(tiny, make_plan, tmp_path):
    model = dataclasses.replace(open_model(tiny("llama")), name="owner/dense")
    for virtual in (False, True):
        out = tmp_path / f"pruned-{virtual}"
        write_checkpoint(model, make_plan(model.path, (1,)), out, virtual=virtual)
        assert json.loads((out / "config.json").read_text())["mi_prun"]["base"] == "owner/dense"
        assert 'base_model: "owner/dense"\n' in (out / "README.md").read_text()


def test_a_companion_that_links_outside_is_refused(tiny, make_plan, tmp_path):
    dense = tiny("llama")
    (tmp_path / "secret").write_text("secret")
    (dense / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"tokenizer\.json is a link that leads outside the folder"):
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_pruned_checkpoint_can_be_pruned_again(tiny, make_plan, assert_same_as_skipping, tmp_path):
    dense = tiny("llama")
    write_checkpoint(open_model(dense), make_plan(dense, (0, 3)), tmp_path / "once")
    write_checkpoint(open_model(tmp_path / "once"), make_plan(tmp_path / "once", (2,)), tmp_path / "twice")
    assert_same_as_skipping(dense, tmp_path / "twice", (0, 3, 4))
    verify(tmp_path / "twice")


def test_a_plan_of_another_model_is_refused(tiny, make_plan, tmp_path):
    dense, other = tiny("llama"), tiny("llama", folder="other", rope_theta=5000.0)
    with pytest.raises(UserError, match=r"the plan was made for .* is another model .*config differ"):
        write_checkpoint(open_model(dense), make_plan(other, (1,)), tmp_path / "pruned")
    plan = make_plan(dense, (1,))
    weights = bytearray((dense / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (dense / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="weights differ"):
        write_checkpoint(open_model(dense), plan, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_an_output_that_holds_something_is_replaced_only_by_force(tiny, make_plan, tmp_path):
    dense, out = tiny("llama"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    model, plan = open_model(dense), make_plan(dense, (1,))
    with pytest.raises(UserError, match=r"exists and is not empty.*--force"):
        write_checkpoint(model, plan, out)
    assert (out / "mine.txt").read_text() == "mine"
    write_checkpoint(model, plan, out, force=True)
    assert not (out / "mine.txt").exists()
    verify(out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dense", "out"]


@pytest.mark.parametrize("where", ["", "inside", ".."])
def test_the_dense_model_is_never_overwritten(tiny, make_plan, where):
    dense = tiny("llama")
    before = digests(dense)
    with pytest.raises(UserError, match="is, holds or lies in the dense model's folder"):
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), dense / where, force=True)
    assert digests(dense) == before


def test_remote_code_is_refused_unless_it_is_the_family_s_own_class(tiny, make_plan, tmp_path):
    dense = tiny("llama")
    config = json.loads((dense / "config.json").read_text())
    for name, fine in (("modeling_mine.MineForCausalLM", False), ("modeling_llama.LlamaForCausalLM", True)):
        (dense / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": name}}))
        if not fine:
            with pytest.raises(UserError, match="'auto_map' names remote code"):
                write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned")
            continue
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), tmp_path / "pruned")
        assert "auto_map" not in json.loads((tmp_path / "pruned/config.json").read_text())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if (
        os.geteuid()
        or not shutil.which("mount")
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_too_small_is_refused_before_writing(tiny, make_plan, small_disk):
    dense = tiny("llama", intermediate_size=400)
    with pytest.raises(UserError, match=r"needs .* GB and .* has .* GB free"):
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), small_disk / "out")
    assert not list(small_disk.iterdir())


def test_a_disk_that_is_read_only_is_one_line(tiny, make_plan, small_disk):
    dense = tiny("llama")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="is not writable") as caught:
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), small_disk / "out")
    assert "\n" not in str(caught.value)
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_while_writing_leaves_nothing(tiny, make_plan, small_disk, monkeypatch):
    dense = tiny("llama", intermediate_size=400)
    # Another process may take the room after it was checked.
    monkeypatch.setattr(checkpoint, "check_space", lambda out, needed: None)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; nothing was left behind"):
        write_checkpoint(open_model(dense), make_plan(dense, (1,)), small_disk / "out")
    assert not list(small_disk.iterdir())


APPLY = """
import sys
from pathlib import Path
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan
from mi_prun.errors import UserError
dense, plan, out = map(Path, sys.argv[1:])
try:
    write_checkpoint(open_model(dense), Plan.read(plan), out)
except UserError as error:
    sys.exit(f"error: {error}")
"""


def test_a_limit_on_file_size_leaves_nothing(tiny, make_plan, tmp_path):
    dense, out = tiny("llama", intermediate_size=400), tmp_path / "place" / "out"
    out.parent.mkdir()
    make_plan(dense, (1,)).write(tmp_path / "plan.json")
    done = subprocess.run(
        [sys.executable, "-c", APPLY, str(dense), str(tmp_path / "plan.json"), str(out)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(out.parent.iterdir())


def test_no_heavy_import(tiny, make_plan, tmp_path):
    """Reading headers and copying bytes needs neither torch nor transformers: memory and start-up stay small."""
    dense = tiny("llama")
    make_plan(dense, (1,)).write(tmp_path / "plan.json")
    check = APPLY + "\nassert not {'torch', 'transformers'} & sys.modules.keys()\n"
    arguments = [str(dense), str(tmp_path / "plan.json"), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", check, *arguments], check=True)
