"""Dense model + plan -> a checkpoint folder that has only the kept blocks. It is whole, or not there at all.

Materialised: it holds the bytes of the kept tensors, and opens in stock transformers and stock vLLM.
Virtual: it holds the reduced config and the small files. The weights stay in the dense model's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from mi_prun.architecture.architecture import Config, proof_of, reduce_config, renamed
from mi_prun.checkpoint.card import CARD_NAME, MAP_NAME, model_card
from mi_prun.checkpoint.companions import companions
from mi_prun.checkpoint.healing import ADAPTER_NAME, Healed
from mi_prun.checkpoint.manifest import MANIFEST_NAME, FileDigest, Manifest, Weights, config_entry
from mi_prun.checkpoint.shard_writer import ShardPlan, TensorCopy, plan_shards, write_shards
from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.files import check_apart, check_output, check_space, new_folder, sync
from mi_prun.model.hub import at_commit
from mi_prun.model.identity import structure_digest
from mi_prun.model.model_folder import ModelFolder, check_quantization_beside
from mi_prun.model.shard import Shard
from mi_prun.model.weight_files import INDEX_NAME
from mi_prun.plan.block_map import svg_map
from mi_prun.plan.plan import Plan


def write_checkpoint(
    dense: ModelFolder,
    plan: Plan,
    out: Path,
    *,
    virtual: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    force: bool = False,
    assume_uniform: bool = False,
    healed: Healed | None = None,
    quiet: bool = False,
) -> Manifest:
    """Write the checkpoint of the blocks that `plan` keeps of `dense` into the folder `out`.

    assume_uniform: let config fields pass that are not known and may be per block. The manifest records it.
    healed: what healing changed; a virtual folder takes its adapter.
    quiet: show no progress.
    Raises UserError, with nothing written, if the plan belongs to another model, the family or a config field is not
    supported, `out` is taken (`force` replaces it whole), or the disk is too small.
    """
    check_output(out, force=force)
    check_apart(dense.path, out)
    if max_shard_bytes < 1:
        raise UserError(f"a shard must hold at least 1 byte, got {max_shard_bytes}")
    plan.check_belongs_to_folder(dense)
    check_quantization_beside(dense)
    config = reduce_config(dense.config, plan.kept, assume_uniform=assume_uniform)
    if virtual and own_head(dense.tensors):
        config = untied(config)
    proof = proof_of(dense.config, plan.dropped)
    copies = kept_tensors(dense, plan, healed.tensors if healed else None)
    weight_bytes = sum(copy.info.num_bytes for copy in copies)
    weights: Weights = "virtual" if virtual else "materialized"
    dense_name, base = _names_of(dense)
    if not virtual:
        base = dense_name
    config["mi_prun"] = config_entry(plan, weights, base)
    shards = [] if virtual else plan_shards(copies, max_shard_bytes)
    beside = companions(dense.path)
    check_space(
        out, sum(shard.num_bytes for shard in shards) + sum((dense.path / name).stat().st_size for name in beside)
    )

    with new_folder(out, force=force) as folder:
        files: dict[str, FileDigest] = {}
        if shards:
            metadata = {"format": "pt"} | dense.shards[0].metadata
            with progress("writing", weight_bytes, "bytes", shown=not quiet) as advance:
                files |= write_shards(folder, shards, metadata, advance)
        if len(shards) > 1:
            files[INDEX_NAME] = _write(
                folder, INDEX_NAME, _index(shards, plan.dense.num_parameters - plan.parameters_dropped)
            )
        for name in beside:
            files[name] = _write(folder, name, (dense.path / name).read_bytes())
        if healed is not None and healed.adapter is not None:
            files[ADAPTER_NAME] = _write(folder, ADAPTER_NAME, healed.adapter.read_bytes())
        files["config.json"] = _write(folder, "config.json", _json(config))
        kinds = dense.block_kinds
        files[MAP_NAME] = _write(folder, MAP_NAME, svg_map(plan.dense.num_blocks, plan.dropped, kinds).encode())
        manifest = Manifest(
            plan=plan,
            weights=weights,
            weight_bytes=weight_bytes,
            dense_weight_bytes=plan.dense.parts.weight_bytes if plan.dense.parts else dense.weight_bytes,
            files=files,
            block_kinds=kinds,
            structure_sha256=structure_digest({copy.name: copy.info for copy in copies}),
            assume_uniform=assume_uniform,
            proof=proof,
            healing=healed.healing if healed else None,
        )
        card = model_card(manifest, source=dense.path, name=dense_name, base=base)
        files[CARD_NAME] = _write(folder, CARD_NAME, card.encode())
        manifest = manifest.model_copy(update={"files": dict(sorted(files.items()))})
        manifest.write(folder / MANIFEST_NAME)
    return manifest


def own_head(names: Iterable[str]) -> bool:
    """Tell whether tensors of these names have an unembedding of their own."""
    return any(name.split(".")[-2:] == ["lm_head", "weight"] for name in names)


def ties_head(config: Config) -> bool:
    """Tell whether a config says that the unembedding is the embedding."""
    text = config.get("text_config")
    return any(level.get("tie_word_embeddings") is True for level in (config, text) if isinstance(level, dict))


def untied(config: Config) -> Config:
    """Return a config that ties no unembedding to the embedding.

    Where config and checkpoint do not agree, transformers and vLLM go by the checkpoint; in a virtual folder vLLM finds
    none to look into.
    """
    changed = {**config, "tie_word_embeddings": False}
    if isinstance(text := config.get("text_config"), dict):
        changed["text_config"] = {**text, "tie_word_embeddings": False}
    return changed


def kept_tensors(dense: ModelFolder, plan: Plan, healed: Shard | None = None) -> list[TensorCopy]:
    """Return the tensors of the pruned model under their new names, in the order of the dense model's files.

    healed: a file of changed tensors under the dense model's names; they are taken from there.
    """
    changed = {} if healed is None else healed.tensors
    copies = []
    for shard in dense.shards:
        for info in shard.tensors.values():
            if (name := renamed(info.name, dense.family, plan.kept, num_blocks=dense.num_blocks)) is not None:
                new = changed.get(info.name)
                copies.append(
                    TensorCopy(name, shard.path if new is None or healed is None else healed.path, new or info)
                )
    return copies


def _names_of(dense: ModelFolder) -> tuple[str, str]:
    """Return the dense model's name and its exact place: a folder's name and path, or a hub id without and with commit.

    A materialised folder may be given away: card and config.json say only the dense model's name. The manifest says
    where it lay, for `mi-prun heal`.
    """
    if Path(dense.name).is_dir():
        path = dense.path.resolve()
        return path.name, str(path)
    return dense.name.partition("@")[0], at_commit(dense.name, dense.path)


def check_room(dense: ModelFolder, plan: Plan, out: Path, more_bytes: int = 0) -> None:
    """Refuse a disk that cannot hold the kept tensors, before anything is computed that would be lost.

    more_bytes: what else is there for a while.
    """
    check_space(out, more_bytes + sum(copy.info.num_bytes for copy in kept_tensors(dense, plan)))


def _index(shards: list[ShardPlan], num_parameters: int) -> bytes:
    total = sum(shard.num_bytes for shard in shards)
    weight_map = {copy.name: shard.file for shard in shards for copy in shard.copies}
    metadata = {"total_parameters": num_parameters, "total_size": total}
    return _json({"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _json(data: Config) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def _write(folder: Path, name: str, data: bytes) -> FileDigest:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    sync(path)
    return FileDigest(num_bytes=len(data), sha256=sha256(data).hexdigest())
