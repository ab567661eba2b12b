"""Adapters on a pruned model, without an engine: whose numbers an adapter has, and its tensors renumbered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mi_prun.checkpoint.manifest import ConfigEntry
from mi_prun.errors import UserError
from vllm_ext.adapters import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    PrunedModel,
    check_for_dense,
    open_pruned,
    renumbering,
    write_renumbered,
)

BLOCKS, DROPPED = 6, (1, 3)  # kept are 0, 2, 4, 5
MODULE = "base_model.model.model.layers.{}.self_attn.o_proj"

Make = Callable[..., Path]


@pytest.fixture
def dense(tiny: Callable[..., Path]) -> Path:
    return tiny("llama", num_hidden_layers=BLOCKS)


@pytest.fixture
def pruned(dense: Path, prune: Callable[..., Path], tmp_path: Path) -> Path:
    return prune(dense, tmp_path / "pruned", DROPPED)


@pytest.fixture
def model(pruned: Path) -> PrunedModel:
    opened = open_pruned(pruned)
    assert opened is not None
    return opened


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(blocks, base=..., **fields)`: a folder as peft writes it. The tensors of block b are filled with b."""

    def adapter(
        blocks: Sequence[int], base: str | None = "nowhere/at-all", module: str = MODULE, **fields: Any
    ) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "lora_alpha": 4, "target_modules": []}
        (folder / CONFIG_NAME).write_text(json.dumps(config | fields))
        tensors = {
            f"{module.format(block)}.lora_{which}.weight": torch.full((2, 2), float(block))
            for block in blocks
            for which in "AB"
        }
        save_file(tensors, folder / WEIGHTS_NAME)
        return folder

    return adapter


def renumbered(adapter: Path, model: PrunedModel, out: Path) -> dict[str, torch.Tensor]:
    change = renumbering(adapter, model)
    assert change is not None
    out.mkdir()
    write_renumbered(adapter, change, out)
    return load_file(out / WEIGHTS_NAME)


def test_each_tensor_follows_its_block_and_those_of_dropped_blocks_go(
    make: Make, model: PrunedModel, tmp_path: Path
) -> None:
    tensors = renumbered(make(range(BLOCKS)), model, tmp_path / "out")
    wanted = {0: 0, 1: 2, 2: 4, 3: 5}
    assert tensors.keys() == {f"{MODULE.format(new)}.lora_{which}.weight" for new in wanted for which in "AB"}
    for new, old in wanted.items():
        assert tensors[f"{MODULE.format(new)}.lora_A.weight"].unique().tolist() == [old]


def test_it_says_how_many_tensors_are_left_out(make: Make, model: PrunedModel) -> None:
    said = str(renumbering(make([1, 2, 5]), model))
    assert said == (
        "block numbers of the dense model, renumbered; left out: 2 of 6 tensors, those of the dropped blocks [1] "
        "(0-based)"
    )


@pytest.mark.parametrize("base", ["dense", "other place", "virtual"])
def test_the_base_is_the_dense_model(
    make: Make, prune: Callable[..., Path], dense: Path, model: PrunedModel, tmp_path: Path, base: str
) -> None:
    """By its folder, by a copy of it, or by the path that a virtual folder names, which is gone."""
    named = dense
    if base == "other place":
        named = Path(shutil.copytree(dense, tmp_path / "copy"))
    if base == "virtual":
        virtual = open_pruned(prune(dense, tmp_path / "virtual", DROPPED, virtual=True))
        assert virtual is not None
        model, named = virtual, Path(virtual.entry.base)
        shutil.rmtree(dense)
    assert renumbering(make([2], str(named)), model) is not None


@pytest.mark.parametrize("base", ["owner/dense", f"owner/dense@{'0' * 40}"])
def test_the_base_is_the_dense_model_of_the_hub(make: Make, pruned: Path, base: str) -> None:
    config = json.loads((pruned / "config.json").read_text())
    config["mi_prun"]["base"] = "owner/dense"
    (pruned / "config.json").write_text(json.dumps(config))
    model = open_pruned(pruned)
    assert model is not None
    assert renumbering(make([2], base), model) is not None


def test_a_number_that_only_the_dense_model_has(make: Make, model: PrunedModel) -> None:
    change = renumbering(make([2, 4]), model)
    assert change is not None
    assert set(change.names.values()) == {f"{MODULE.format(new)}.lora_{w}.weight" for new in (1, 2) for w in "AB"}


@pytest.mark.parametrize("base", ["pruned", "copy"])
def test_an_adapter_of_the_pruned_model_is_left(
    make: Make, pruned: Path, model: PrunedModel, tmp_path: Path, base: str
) -> None:
    shutil.copytree(pruned, tmp_path / "copy")
    assert renumbering(make(range(4), str(tmp_path / base)), model) is None


def test_a_pruned_model_in_the_hubs_cache_is_known_by_its_id(make: Make, pruned: Path, tmp_path: Path) -> None:
    """As an engine sees it: `mi-prun-serve` gives it the folder."""
    cached = Path(shutil.copytree(pruned, tmp_path / "models--owner--small--er" / "snapshots" / "0123abc"))
    model = open_pruned(cached)
    assert model is not None
    assert renumbering(make([2], "owner/small--er"), model) is None


@pytest.mark.parametrize(("whose", "new"), [("dense", 1), ("pruned", None)])
def test_the_adapter_says_it(make: Make, model: PrunedModel, whose: str, new: int | None) -> None:
    change = renumbering(make([2], mi_prun_blocks=whose), model)
    assert (None if change is None else set(change.names.values())) == (
        None if new is None else {f"{MODULE.format(new)}.lora_{which}.weight" for which in "AB"}
    )


@pytest.mark.parametrize("base", [None, "nowhere/at-all", "/not/here", "\0", "long" * 2_000])
def test_what_may_be_eithers_is_refused(make: Make, model: PrunedModel, base: str | None) -> None:
    with pytest.raises(UserError) as refused:
        renumbering(make([2], base), model)
    said = str(refused.value)
    assert "up to 2, may be those of the pruned model (4 blocks) or of the dense one (6)" in said
    assert repr(base) in said
    assert '"mi_prun_blocks": "dense" or "pruned" in its adapter_config.json' in said


def test_it_does_not_matter_where_both_put_it_on_the_same_block(make: Make, model: PrunedModel) -> None:
    assert renumbering(make([0]), model) is None


def test_an_adapter_of_no_block_is_left(make: Make, model: PrunedModel) -> None:
    assert renumbering(make([0], module="base_model.model.lm_head"), model) is None


def test_an_adapter_of_a_model_with_more_blocks(make: Make, model: PrunedModel) -> None:
    with pytest.raises(UserError, match=r"has block 6 \(0-based\), and the dense model behind .* has 6 blocks"):
        renumbering(make([0, 6]), model)


def test_it_is_said_to_be_the_pruned_models_and_has_more_blocks(make: Make, pruned: Path, model: PrunedModel) -> None:
    with pytest.raises(UserError, match=r"said to be the pruned model's, which has 4 blocks, and has block 5"):
        renumbering(make([5], str(pruned)), model)


def test_it_was_trained_on_another_pruned_model(
    make: Make, prune: Callable[..., Path], dense: Path, model: PrunedModel, tmp_path: Path
) -> None:
    other = prune(dense, tmp_path / "other", (2, 4))
    with pytest.raises(UserError, match=r"another pruned model, .*other: it keeps other blocks"):
        renumbering(make([2], str(other)), model)


def test_nothing_of_it_would_be_left(make: Make, model: PrunedModel) -> None:
    with pytest.raises(UserError, match=r"only blocks \[1, 3\] of the dense model \(0-based\), and they are dropped"):
        renumbering(make([1, 3], mi_prun_blocks="dense"), model)


@pytest.mark.parametrize("module", ["base_model.model.transformer.h.{}.attn", "layers.{}.self_attn.o_proj"])
def test_blocks_under_another_name_are_refused(make: Make, model: PrunedModel, module: str) -> None:
    with pytest.raises(UserError, match=r"blocks of a llama are named model\.layers\.N"):
        renumbering(make([2], module=module), model)


def test_names_without_pefts_prefix(make: Make, model: PrunedModel, tmp_path: Path) -> None:
    tensors = renumbered(make([5], module=MODULE.removeprefix("base_model.model.")), model, tmp_path / "out")
    assert set(tensors) == {f"model.layers.3.self_attn.o_proj.lora_{which}.weight" for which in "AB"}


def test_another_towers_layers_are_left(make: Make, model: PrunedModel) -> None:
    """A model of two towers, and an adapter that has tensors of both; the text model's under two of its names."""
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 4}}
    both = PrunedModel(model.folder, config, model.entry)
    adapter = make([5], module="base_model.model.model.language_model.layers.{}.mlp.up_proj")
    tower = "base_model.model.model.vision_tower.vision_model.encoder.layers.1.mlp.fc1.lora_A.weight"
    tensors = load_file(adapter / WEIGHTS_NAME)
    save_file(tensors | {tower: torch.ones(1)}, adapter / WEIGHTS_NAME)
    change = renumbering(adapter, both)
    assert change is not None
    assert change.names[tower] == tower
    assert change.names["base_model.model.model.language_model.layers.5.mlp.up_proj.lora_A.weight"] == (
        "base_model.model.model.language_model.layers.3.mlp.up_proj.lora_A.weight"
    )


def test_ranks_and_alphas_by_pattern_follow_their_blocks(make: Make, model: PrunedModel, tmp_path: Path) -> None:
    """Patterns about a block's number, about several, and about none; peft's own rule reads them back."""
    from peft.utils.other import get_pattern_key

    ranks = {r"layers\.5\.self_attn\.o_proj": 7, r"layers\.[01]\..*": 5}
    adapter = make([0, 2, 5], rank_pattern=ranks, alpha_pattern={"o_proj": 9}, mi_prun_blocks="dense")
    renumbered(adapter, model, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / CONFIG_NAME).read_text())
    assert "mi_prun_blocks" not in fields
    for block, rank in {0: 5, 1: 2, 3: 7}.items():
        module = f"model.layers.{block}.self_attn.o_proj"
        assert fields["rank_pattern"][get_pattern_key(fields["rank_pattern"], module)] == rank
        assert fields["alpha_pattern"][get_pattern_key(fields["alpha_pattern"], module)] == 9


@pytest.mark.parametrize("pattern", [{"(": 3}, [1]])
def test_a_pattern_that_cannot_be_read(make: Make, model: PrunedModel, tmp_path: Path, pattern: Any) -> None:
    with pytest.raises(UserError, match=r"'rank_pattern' in adapter_config\.json cannot be read"):
        renumbered(make([5], rank_pattern=pattern), model, tmp_path / "out")


def test_a_field_with_another_value(make: Make, model: PrunedModel) -> None:
    with pytest.raises(UserError, match=r'must be "dense" or "pruned", got \'both\''):
        renumbering(make([2], mi_prun_blocks="both"), model)


def test_pickles_are_left_to_vllm_where_nothing_is_renumbered(make: Make, pruned: Path, model: PrunedModel) -> None:
    adapter = make([2])
    (adapter / WEIGHTS_NAME).rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors, .*; save it as safetensors"):
        renumbering(adapter, model)
    fields = json.loads((adapter / CONFIG_NAME).read_text())
    (adapter / CONFIG_NAME).write_text(json.dumps(fields | {"base_model_name_or_path": str(pruned)}))
    assert renumbering(adapter, model) is None


def test_a_folder_that_is_no_adapters(model: PrunedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no adapter_config\.json; not an adapter's folder"):
        renumbering(tmp_path, model)


def test_a_spoilt_file(make: Make, model: PrunedModel) -> None:
    adapter = make([2])
    (adapter / WEIGHTS_NAME).write_bytes((adapter / WEIGHTS_NAME).read_bytes()[:-1])
    with pytest.raises(UserError, match="adapter_model"):
        renumbering(adapter, model)


def test_a_dense_models_adapters_are_not_looked_at_but_for_a_pruned_ones(make: Make, dense: Path, pruned: Path) -> None:
    assert open_pruned(dense) is None
    adapter = make([2], str(pruned))
    with pytest.raises(UserError, match=r"was trained on a pruned model .*; its block numbers are not"):
        check_for_dense(adapter)
    fields = json.loads((adapter / CONFIG_NAME).read_text())
    (adapter / CONFIG_NAME).write_text(json.dumps(fields | {"base_model_name_or_path": str(dense)}))
    check_for_dense(adapter)


@given(st.sets(st.integers(0, 7), min_size=1), st.sets(st.integers(0, 8), min_size=1))
def test_any_blocks_of_any_kept_ones(kept: set[int], blocks: set[int]) -> None:
    """Nothing but the numbers says whose they are: each tensor is on its own block, or it is refused, or both agree."""
    dropped = set(range(8)) - kept
    entry = ConfigEntry(base="dense", dropped=tuple(sorted(dropped)), kept=tuple(sorted(kept)), weights="virtual")
    with TemporaryDirectory() as path:
        folder = Path(path)
        (folder / CONFIG_NAME).write_text('{"base_model_name_or_path": "nowhere/at-all"}')
        names = {block: f"{MODULE.format(block)}.lora_A.weight" for block in blocks}
        save_file({name: torch.ones(1) for name in names.values()}, folder / WEIGHTS_NAME)
        model = PrunedModel(folder, {"model_type": "llama", "num_hidden_layers": len(kept)}, entry)
        try:
            change = renumbering(folder, model)
        except UserError as error:
            said = str(error)
            if 8 in blocks:
                assert "has 8 blocks; it was made for another model" in said
            elif max(blocks) < len(kept):
                assert "say which" in said
            else:
                assert not blocks & kept
            return
    if change is None:
        assert all(entry.kept[block] == block for block in blocks)
        return
    assert max(blocks) in range(len(kept), 8)
    wanted = {block: MODULE.format(entry.kept.index(block)) for block in blocks & kept}
    assert change.names == {
        name: f"{wanted[block]}.lora_A.weight" if block in wanted else None for block, name in names.items()
    }
    assert set(change.left_out) == blocks & dropped
