"""Models of the hub, by real downloads from a stand-in: only the files that hold kept tensors, and no other model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import read_manifest, verify
from mi_prun.checkpoint.manifest import Manifest, read_config_entry
from mi_prun.errors import UserError
from mi_prun.model.hub import HUB_ID
from mi_prun.model.model_folder import open_model, read_config, resolve
from mi_prun.plan.plan import Plan, kept_blocks, open_dense
from serve.served_model import served_model
from vllm_ext.kept_weights import LoadProgress, kept_weights

DROPPED = (1, 2, 5)
NAME = "owner/dense"


@pytest.fixture
def dense(tiny: Callable[..., Path], hub: Any) -> Path:
    """Of some of its files all tensors are of dropped blocks."""
    folder = tiny("llama", max_shard_size="20KB", tie_word_embeddings=False)
    hub.models[NAME] = folder
    return folder


@pytest.fixture
def plan(dense: Path) -> Plan:
    identity = open_model(dense).identity
    return Plan(dense=identity, dropped=DROPPED, kept=kept_blocks(identity.num_blocks, DROPPED), method="by hand")


def apply(plan: Plan, out: Path, *, virtual: bool = True, name: str = NAME) -> Manifest:
    return write_checkpoint(open_dense(name, plan), plan, out, virtual=virtual)


def files_without_kept_tensors(dense: Path) -> set[str]:
    homes: dict[str, set[str]] = {}
    for name, file in json.loads((dense / "model.safetensors.index.json").read_text())["weight_map"].items():
        homes.setdefault(file, set()).add(name)
    gone = tuple(f"model.layers.{block}." for block in DROPPED)
    return {file for file, names in homes.items() if all(name.startswith(gone) for name in names)}


def weights(files: Iterable[str]) -> set[str]:
    return {file for file in files if file.endswith(".safetensors")}


@pytest.mark.parametrize("virtual", [True, False])
def test_only_files_with_kept_tensors_are_downloaded(
    hub: Any, dense: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtual: bool
) -> None:
    """And what is written is what is written from a folder; once more without the hub."""
    manifest = apply(plan, tmp_path / "pruned", virtual=virtual)
    left = files_without_kept_tensors(dense)
    assert len(left) == 3
    assert weights(hub.asked) == {file.name for file in dense.glob("*.safetensors")} - left
    assert len(hub.asked) == len(set(hub.asked))
    verify(tmp_path / "pruned")
    from_folder = apply(plan, tmp_path / "other", virtual=virtual, name=str(dense))
    assert manifest.dense_weight_bytes == from_folder.dense_weight_bytes == open_model(dense).weight_bytes
    assert manifest.structure_sha256 == from_folder.structure_sha256
    assert bool(weights(manifest.files)) == (not virtual)
    assert all(manifest.files[name] == from_folder.files[name] for name in weights(manifest.files))
    base = json.loads((tmp_path / "pruned" / "config.json").read_text())["mi_prun"]["base"]
    assert base == (f"{NAME}@{hub.commit(NAME)}" if virtual else NAME)

    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in (NAME, f"{NAME}@{hub.commit(NAME)}"):
        apply(plan, tmp_path / name[-3:], virtual=virtual, name=name)
    assert len(hub.asked) == asked


def test_the_loader_finds_them_without_the_hub(
    hub: Any, dense: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(plan, tmp_path / "virtual")
    entry = read_config_entry(read_config(tmp_path / "virtual")["mi_prun"], origin="here")
    assert entry is not None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder, reading = resolve(entry.base, entry.kept), LoadProgress()
    found = {name: tensor.clone() for name, tensor in kept_weights(folder, read_config(folder), entry.kept, reading)}
    assert set(reading.files_skipped) == files_without_kept_tensors(dense)
    assert sum(tensor.nbytes for tensor in found.values()) == read_manifest(tmp_path / "virtual").weight_bytes


def spoil(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def other_config(dense: Path) -> None:
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))


def other_kept_weights(dense: Path) -> None:
    spoil(min(file for file in dense.glob("*.safetensors") if file.name not in files_without_kept_tensors(dense)))


def another_name(dense: Path) -> None:
    """Of a tensor in a file that is not downloaded."""
    index = dense / "model.safetensors.index.json"
    gone = files_without_kept_tensors(dense)
    name = next(name for name, file in json.loads(index.read_text())["weight_map"].items() if file in gone)
    index.write_text(index.read_text().replace(name, f"{name}_of_another"))


@pytest.mark.parametrize(
    ("change", "what"), [(other_config, "config"), (other_kept_weights, "weights"), (another_name, "weights")]
)
def test_a_changed_model_is_refused(
    dense: Path, plan: Plan, tmp_path: Path, change: Callable[[Path], None], what: str
) -> None:
    change(dense)
    with pytest.raises(UserError, match=rf"{NAME}@[0-9a-f]{{40}} is another model \(its {what} differ\)"):
        apply(plan, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_virtual_folder_stays_with_the_commit_it_was_made_of(dense: Path, plan: Plan, tmp_path: Path) -> None:
    apply(plan, tmp_path / "virtual")
    other_kept_weights(dense)
    assert served_model(str(tmp_path / "virtual")).describe()["dropped_blocks"] == list(DROPPED)


def kept_shard(dense: Path) -> Path:
    return min(file for file in dense.glob("*.safetensors") if file.name not in files_without_kept_tensors(dense))


@pytest.mark.parametrize("fault", ["missing", "broken", "no such model"])
def test_a_file_that_cannot_be_had(
    hub: Any, dense: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # before it tries again
    if fault == "missing":
        kept_shard(dense).unlink()
    elif fault == "broken":
        hub.broken.add(kept_shard(dense).name)
    said = r"shard model-.* is named .* but missing" if fault == "missing" else "the hub did not give"
    with pytest.raises(UserError, match=said) as raised:
        apply(plan, tmp_path / "pruned", name="owner/other" if fault == "no such model" else NAME)
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "pruned").exists()


def test_a_plan_of_an_older_release_has_the_whole_model_fetched(
    hub: Any, dense: Path, plan: Plan, tmp_path: Path
) -> None:
    """It does not tell the model by a part of it."""
    old = plan.model_copy(update={"dense": plan.dense.model_copy(update={"parts": None})})
    apply(old, tmp_path / "pruned")
    assert weights(hub.asked) == {file.name for file in dense.glob("*.safetensors")}
    spoil(dense / min(files_without_kept_tensors(dense)))
    with pytest.raises(UserError, match=r"is another model \(its weights differ\)"):
        apply(old, tmp_path / "other")


def test_the_name_that_is_written_down_has_the_commit(hub: Any, dense: Path) -> None:
    """A branch moves, and a plan or an analysis of it could not be gone on with."""
    assert open_model(NAME).identity.name == f"{NAME}@{hub.commit(NAME)}"


def test_files_that_the_index_does_not_name_are_not_downloaded(hub: Any, dense: Path) -> None:
    """Such as a shard of another size, of an earlier upload."""
    for stray in ("model-00001-of-00099.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"):
        (dense / stray).write_bytes(kept_shard(dense).read_bytes())
    open_model(NAME)
    index = json.loads((dense / "model.safetensors.index.json").read_text())["weight_map"]
    assert weights(hub.asked) == set(index.values())


def test_a_model_that_is_there_is_taken_without_a_network_though_a_text_is_missing(
    hub: Any, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where transformers fetched it, which takes no README; a shard that is missing is said."""
    (dense / "README.md").write_text("A model.")
    folder = open_model(NAME).path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (folder / "README.md").unlink()
    assert open_model(NAME).path == folder
    (folder / kept_shard(dense).name).unlink()
    with pytest.raises(UserError, match="the hub did not give it: An error happened while trying to locate the file"):
        open_model(NAME)


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, r"Repository Not Found for url: .* and set HF_TOKEN\.$"),
        (403, {"X-Error-Code": "GatedRepo"}, r"Cannot access gated repo for url .* and set HF_TOKEN\.$"),
        (404, {"X-Error-Code": "RevisionNotFound"}, r"did not give it: Revision Not Found for url"),
        (429, {}, r"did not give it: 429 Too Many Requests"),
    ],
)
def test_what_the_hub_refuses_is_said(
    hub: Any, dense: Path, monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], said: str
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # before it tries again
    hub.refusal = (status, {"X-Request-Id": "Root=1-2", **headers})
    with pytest.raises(UserError, match=said):
        open_model(NAME)


def test_pickles_alone_are_said_though_they_are_not_fetched(hub: Any, dense: Path) -> None:
    for file in dense.glob("model*.safetensors*"):
        file.unlink()
    (dense / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(UserError, match="has only pickled weights"):
        open_model(NAME)


@pytest.mark.parametrize("reference", ["owner/dense@main", "owner/dense@1a2b3c4"])
def test_a_branch_behind_the_name_is_refused(reference: str) -> None:
    with pytest.raises(UserError, match="behind an @ stands a whole commit, 40 digits"):
        open_model(reference)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("a/b", True), (f"a/b@{'0' * 40}", True), ("a/b@main", False), ("./a", False), ("a", False), ("a/b/c", False)],
)
def test_what_is_a_hub_id(text: str, fits: bool) -> None:
    assert bool(HUB_ID.fullmatch(text)) == fits
