"""The models of a run: opened, told apart, and refused where they do not belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.models.measured_model import open_measured_models
from mi_prun.checkpoint.healing import HealedQuality, Healing
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.checkpoint.manifest import MANIFEST_NAME
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model

Prune = Callable[..., Path]


def refused(dense: Path, pruned: list[Path], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_measured_models(str(dense), [str(path) for path in pruned])


def test_models_that_will_not_do(tmp_path: Path, dense: Path, other_dense: Path, prune: Prune) -> None:
    own = prune(dense, tmp_path / "p1", [1])
    other = prune(other_dense, tmp_path / "p2", [1])
    refused(tmp_path / "absent", [own], "no such folder")
    refused(tmp_path, [own], r"has no config\.json")
    refused(own, [own], "is itself a pruned model; name the dense one")
    refused(dense, [other_dense], r"is not a folder that `mi-prun apply` wrote")
    refused(dense, [own, other], r"the plan was made for .*other and .*dense is another model \(its weights")
    refused(dense, [own, own], "is named twice")
    (own / "model.safetensors").write_bytes((own / "model.safetensors").read_bytes()[:-8])
    refused(dense, [own], r"model\.safetensors")
    with pytest.raises(UserError, match="is another model"):
        open_measured_models(str(dense), (), [other])


def test_a_manifest_beside_weights_of_another_size(tmp_path: Path, dense: Path, prune: Prune) -> None:
    pruned, smaller = prune(dense, tmp_path / "p1", [1]), prune(dense, tmp_path / "p2", [1, 2])
    (smaller / "model.safetensors").replace(pruned / "model.safetensors")
    refused(dense, [pruned], "apply the plan again")


def test_subjects_say_what_they_lack(tmp_path: Path, dense: Path, prune: Prune) -> None:
    written, virtual = prune(dense, tmp_path / "p", [1, 2]), prune(dense, tmp_path / "v", [3], virtual=True)
    plan = tmp_path / "plan.json"
    read_manifest(virtual).plan.write(plan)
    models = open_measured_models(str(dense), [str(written), str(virtual)], [plan])
    first, second, third, drafted = models.all
    identity = open_model(dense).identity
    assert [model.arm.label for model in models.all] == [
        "dense",
        "by hand 50.0%",
        "by hand 25.0%",
        "draft by hand 25.0%",
    ]
    assert [model.arm.weights for model in models.all] == [None, "materialized", "virtual", "virtual"]
    assert (models.dense.weights_sha256, models.context) == (identity.weights_sha256, 64)
    assert first.arm.blocks.dropped == ()
    assert second.arm.blocks.dropped == (1, 2)
    assert second.arm.blocks.parameter_ratio == pytest.approx(
        sum(identity.block_parameters[1:3]) / identity.num_parameters
    )
    block_bytes = (first.weight_bytes - second.weight_bytes) // 2
    assert first.weight_bytes - third.weight_bytes == block_bytes == 4 * identity.block_parameters[1]
    for model in (first, second, third):
        assert model.weights is not None
        assert model.weights.total_bytes == model.weight_bytes
    assert drafted.flags == ("--draft", str(plan))
    assert drafted.weight_bytes == first.weight_bytes


def test_healed_models_are_told_apart_and_judged_by_what_healing_measured(
    tmp_path: Path, dense: Path, prune: Prune
) -> None:
    kinds = [
        HealedQuality(
            text=text, predicted_tokens=62, dense_perplexity=4.0, pruned_perplexity=pruned, healed_perplexity=healed,
            pruned_kl_nats=0.9, healed_kl_nats=0.3,
        )
        for text, pruned, healed in (("wiki", 16.0, 8.0), ("books", 25.0, 8.0))
    ]  # fmt: skip
    healing = Healing(
        method="fit", text="wiki, books", tokens=0, fit_tokens=64, seconds=2.0, seed=1,
        settings={"window_tokens": 32}, quality=tuple(kinds),
    )  # fmt: skip
    one, two = prune(dense, tmp_path / "one", [1]), prune(dense, tmp_path / "two", [1])
    read_manifest(two).model_copy(update={"healing": healing}).write(two / MANIFEST_NAME)
    first, pruned, healed = open_measured_models(str(dense), [str(one), str(two)]).all
    assert [model.arm.label for model in (first, pruned, healed)] == ["dense", "by hand 25.0%", "by hand 25.0% healed"]
    assert pruned.arm.healing is None
    assert healed.arm.healing is not None
    assert (healed.arm.healing.method, healed.arm.healing.text, healed.arm.healing.seed) == ("fit", "wiki, books", 1)
    assert pruned.arm.identity != healed.arm.identity
    assert pruned.quality is not None
    assert healed.quality is not None
    assert pruned.quality.text == healed.quality.text == "wiki and books"
    assert pruned.quality.pruned_perplexity == pytest.approx(20.0)
    assert healed.quality.pruned_perplexity == pytest.approx(8.0)
    assert healed.quality.dense_perplexity == pytest.approx(4.0)
    assert (healed.quality.windows, healed.quality.kl_nats_per_token) == (4, pytest.approx(0.3))
    assert pruned.quality_measured_on == healed.quality_measured_on == "healing"


def test_two_of_one_method_and_ratio_are_told_apart(tmp_path: Path, dense: Path, prune: Prune) -> None:
    one, two = prune(dense, tmp_path / "one", [1]), prune(dense, tmp_path / "two", [2])
    labels = [model.arm.label for model in open_measured_models(str(dense), [str(one), str(two)], [one, two]).all]
    assert labels[1:] == [
        "by hand 25.0% (one)",
        "by hand 25.0% (two)",
        "draft by hand 25.0% (without 1)",
        "draft by hand 25.0% (without 2)",
    ]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, dense: Path, prune: Prune) -> None:
    """Rounds, engines and quality go by the label: two of one would be measured as one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = prune(dense, tmp_path / "a" / "same", [1]), prune(dense, tmp_path / "b" / "same", [1])
    labels = [model.arm.label for model in open_measured_models(str(dense), [str(one), str(two)], [one, two]).all]
    assert labels[1:] == [
        f"by hand 25.0% ({one})",
        f"by hand 25.0% ({two})",
        f"draft by hand 25.0% ({one})",
        f"draft by hand 25.0% ({two})",
    ]
    with pytest.raises(UserError, match=r"^draft .* is named twice"):
        open_measured_models(str(dense), [], [one, one])
