from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mi_prun.checkpoint.companions import companions
from mi_prun.errors import UserError
from mi_prun.model.hub import HUB_IGNORED, SMALL_PATTERNS
from mi_prun.model.model_folder import open_model
from mi_prun.model.weight_files import INDEX_NAME


@pytest.fixture
def dense(tiny) -> Path:
    path = tiny("llama", max_shard_size="40KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def edit(path: Path, **fields: object) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (data | fields).items() if v is not None}))


def remap(path: Path, change) -> None:
    index = json.loads((path / INDEX_NAME).read_text())
    change(index["weight_map"])
    (path / INDEX_NAME).write_text(json.dumps(index))


def first_shard(path: Path) -> Path:
    return sorted(path.glob("*.safetensors"))[0]


def truncate(path: Path) -> None:
    shard = first_shard(path)
    shard.write_bytes(shard.read_bytes()[:-100])


def pickles_only(path: Path) -> None:
    for file in path.glob("*.safetensors*"):
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def link_outside(path: Path) -> None:
    shard = first_shard(path)
    shutil.move(shard, path.parent / "elsewhere.safetensors")
    shard.symlink_to(path.parent / "elsewhere.safetensors")


def outside(path: Path) -> None:
    shutil.copy(first_shard(path), path.parent / "outside.safetensors")
    remap(path, lambda names: names.update({next(iter(names)): "../outside.safetensors"}))


def without_weights(path: Path) -> None:
    for file in path.glob("*.safetensors*"):
        file.unlink()


FAULTS = {
    "no config": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "config is not JSON": (lambda p: (p / "config.json").write_text("{"), "cannot be read as JSON"),
    "config is not text": (lambda p: (p / "config.json").write_bytes(b"\xff\xfe\0"), "cannot be read as JSON"),
    "half a character": (
        lambda p: (p / "config.json").write_text(r'{"layer_types": ["\ud800"]}'),
        "surrogates not allowed",
    ),
    "config is a list": (lambda p: (p / "config.json").write_text("[]"), "is not a JSON object"),
    "config nests too deep": (lambda p: (p / "config.json").write_text("[" * 99_999), "cannot be read as JSON"),
    "no weights": (without_weights, "has no weights"),
    "pickles": (pickles_only, r"only pickled weights \(pytorch_model.bin\)"),
    "no index": (lambda p: (p / INDEX_NAME).unlink(), "the index is missing"),
    "shard missing": (lambda p: first_shard(p).unlink(), "named in the index but missing"),
    "shard truncated": (truncate, "is truncated"),
    "shard not in the index": (
        lambda p: remap(p, lambda names: [names.pop(n) for n in list(names) if names[n] == first_shard(p).name]),
        "is not named in model.safetensors.index.json",
    ),
    "tensor not in the index": (lambda p: remap(p, lambda names: names.pop("model.norm.weight")), "not in the index"),
    "tensor only in the index": (
        lambda p: remap(p, lambda names: names.update({"ghost": next(iter(names.values()))})),
        "says 'ghost' lies in",
    ),
    "index leads outside": (outside, "leads outside the model folder"),
    "index names an absolute path": (
        lambda p: remap(p, lambda names: names.update({"x": str(first_shard(p))})),
        "leads outside the model folder",
    ),
    "index names a pickle": (lambda p: remap(p, lambda names: names.update({"x": "a.bin"})), "not a safetensors file"),
    "index names a number": (lambda p: remap(p, lambda names: names.update({"x": 7})), "not a safetensors file"),
    "index without a map": (lambda p: (p / INDEX_NAME).write_text('{"weight_map": {}}'), "has no weight_map"),
    "shard links outside": (link_outside, "is a link that leads outside the folder"),
    "no block tensors": (
        lambda p: edit(p / "config.json", num_hidden_layers=9),
        r"no tensor of block 6 \(model.layers.6",
    ),
    "too many blocks": (lambda p: edit(p / "config.json", num_hidden_layers=3), "but the config has 3 blocks"),
    "no block count": (lambda p: edit(p / "config.json", num_hidden_layers=None), "'num_hidden_layers' must be"),
    "block count is no number": (lambda p: edit(p / "config.json", num_hidden_layers=True), "got True"),
    "unknown family": (lambda p: edit(p / "config.json", model_type="bert"), "model_type 'bert' is not supported"),
    "no family": (lambda p: edit(p / "config.json", model_type=None), "model_type None is not supported"),
    "other head": (
        lambda p: edit(p / "config.json", architectures=["LlamaForSequenceClassification"]),
        "only LlamaForCausalLM is",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_right_is_refused_in_one_line(dense, fault):
    break_it, message = FAULTS[fault]
    break_it(dense)
    with pytest.raises(UserError, match=message) as caught:
        _ = open_model(dense).identity
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no-such-folder", "not a hub id"),
        ("./a/b", "not a hub id"),
        ("../up", "not a hub id"),
        ("/etc/passwd", "is a file"),
        ("a/b/c", "not a hub id"),
    ],
)
def test_a_name_that_leads_nowhere(reference, message):
    with pytest.raises(UserError, match=message):
        open_model(reference)


def test_a_single_shard_that_links_outside_is_refused(tiny, tmp_path):
    dense = tiny("llama")
    (dense / "model.safetensors").rename(tmp_path / "elsewhere")
    (dense / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link that leads outside the folder"):
        open_model(dense)


def test_links_of_the_hub_cache_are_followed(dense, tmp_path):
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.move(dense, cache / "blobs")
    for file in (cache / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert open_model(snapshot).num_blocks == 6


def test_links_to_the_store_that_the_whole_cache_shares_are_followed(dense, tmp_path):
    """What huggingface_hub 2 makes of files in Xet storage; elsewhere a link still leads outside."""
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.move(dense, tmp_path / "blobs")
    (repository / "blobs").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (repository / "blobs" / file.name).symlink_to(Path("../../blobs") / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert open_model(snapshot).num_blocks == 6
    (tmp_path / "blobs").rename(tmp_path / "elsewhere")
    for file in (tmp_path / "elsewhere").iterdir():
        (repository / "blobs" / file.name).unlink()
        (repository / "blobs" / file.name).symlink_to(Path("../../elsewhere") / file.name)
    with pytest.raises(UserError, match="is a link that leads outside the folder"):
        open_model(snapshot)


def test_what_is_taken_from_the_hub(tmp_path):
    """Config, weights, and whatever a pruned checkpoint takes along; not the same weights twice, no code, no pickle."""
    from huggingface_hub.utils import filter_repo_objects

    along = [
        "tokenizer.model.v3", "qwen.tiktoken", "spiece.model", "merges.txt", "bpe.codes", "tekken.json",
        "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "generation_config.json",
        "preprocessor_config.json", "LICENSE", "licence.md", "Notice.txt", "COPYING", "USE_POLICY.md",
    ]  # fmt: skip
    for name in along:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert companions(tmp_path) == sorted(along)
    weights = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "README.md"]
    behind = ["original/model.safetensors", "consolidated.safetensors", "modeling_x.py", "pytorch_model.bin", "x.gguf"]
    behind += ["original/params.json", "onnx/config.json", "original/tokenizer.model"]
    taken = filter_repo_objects(
        [*along, *weights, *behind], allow_patterns=[*SMALL_PATTERNS, weights[1]], ignore_patterns=list(HUB_IGNORED)
    )
    assert set(taken) == {*along, *weights}
