"""What is wrong is said before anything is started or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.record_v1 import RECORDS_NAME
from bench.run import RunSettings, run
from bench.subject import open_subjects
from mi_prun.errors import UserError

Prune = Callable[..., Path]
SETTINGS = RunSettings(input_tokens=16, output_tokens=8)


def refused(dense: Path, pruned: list[Path], said: str, out: Path, settings: RunSettings = SETTINGS) -> None:
    with pytest.raises(UserError, match=said):
        run(str(dense), [str(path) for path in pruned], out, settings)
    assert not out.exists()


def test_models_that_will_not_do(tmp_path: Path, dense: Path, other_dense: Path, prune: Prune) -> None:
    out = tmp_path / "results"
    own = prune(dense, tmp_path / "p1", [1])
    other = prune(other_dense, tmp_path / "p2", [1])
    refused(tmp_path / "absent", [own], "no such folder", out)
    refused(tmp_path, [own], "has no config.json", out)
    refused(own, [own], "is itself a pruned model; name the dense one", out)
    refused(dense, [other_dense], r"is not a folder that `mi-prun apply` wrote", out)
    refused(dense, [own, other], r"the plan was made for .*other and .*dense is another model \(its weights", out)
    refused(dense, [own, own], "is named twice", out)
    (own / "model.safetensors").write_bytes((own / "model.safetensors").read_bytes()[:-8])
    refused(dense, [own], r"model\.safetensors", out)


def test_a_manifest_beside_weights_of_another_size(tmp_path: Path, dense: Path, prune: Prune) -> None:
    pruned, smaller = prune(dense, tmp_path / "p1", [1]), prune(dense, tmp_path / "p2", [1, 2])
    (smaller / "model.safetensors").replace(pruned / "model.safetensors")
    refused(dense, [pruned], "apply the plan again", tmp_path / "results")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (replace(SETTINGS, rounds=0), "--rounds must be at least 1, got 0"),
        (replace(SETTINGS, input_tokens=-3), "--input-tokens must be at least 1, got -3"),
        (replace(SETTINGS, input_tokens=60), "make 68, but the model is served with a context of 64"),
        (replace(SETTINGS, serve_flags=("--max-model-len", "16")), "with a context of 16"),
        (replace(SETTINGS, serve_flags=("--max-model-len=16",)), "with a context of 16"),
        (replace(SETTINGS, serve_flags=("--port=80",)), "--serve-flags may not hold --port"),
    ],
)
def test_settings_that_will_not_do(tmp_path: Path, dense: Path, prune: Prune, settings: RunSettings, said: str) -> None:
    refused(dense, [prune(dense, tmp_path / "p1", [1])], said, tmp_path / "results", settings)


def test_a_results_folder_of_another_release(tmp_path: Path, dense: Path, prune: Prune) -> None:
    (tmp_path / RECORDS_NAME).write_text(json.dumps({"schema_version": 9}) + "\n")
    with pytest.raises(UserError, match="has schema version 9"):
        run(str(dense), [str(prune(dense, tmp_path / "p1", [1]))], tmp_path, SETTINGS)
    with pytest.raises(UserError, match="cannot write"):
        run(str(dense), [str(tmp_path / "p1")], tmp_path / RECORDS_NAME, SETTINGS)


def test_subjects_say_what_they_lack(tmp_path: Path, dense: Path, prune: Prune) -> None:
    written, virtual = prune(dense, tmp_path / "p", [1, 2]), prune(dense, tmp_path / "v", [3], virtual=True)
    identity, (first, second, third) = open_subjects(str(dense), [str(written), str(virtual)])
    assert (first.title, second.title, third.title) == ("dense", "50.0% dropped", "25.0% dropped")
    assert first.blocks(identity).dropped == ()
    assert second.blocks(identity).dropped == (1, 2)
    assert second.blocks(identity).parameter_ratio == pytest.approx(
        sum(identity.block_parameters[1:3]) / identity.num_parameters
    )
    block_bytes = (first.weight_bytes - second.weight_bytes) // 2
    assert first.weight_bytes - third.weight_bytes == block_bytes == 4 * identity.block_parameters[1]
