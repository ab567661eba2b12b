"""The model a server is asked for: what its folder says of itself, checked before an engine is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mi_prun.architecture.architecture import block_kinds, reduce_config
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import read_manifest, verify_structure
from mi_prun.checkpoint.manifest import MANIFEST_NAME, Manifest, config_entry, is_pruned, read_config_entry
from mi_prun.errors import UserError
from mi_prun.model.hub import HUB_ID, at_commit, fetch
from mi_prun.model.model_folder import open_model, read_config, resolve
from mi_prun.plan.plan import Plan, open_dense
from vllm_ext.base import check_entry, check_unhealed_draft

DRAFT_TOKENS = 3  # at a time, where neither the user nor the plan says how many


@dataclass(frozen=True)
class Draft:
    """A virtual folder beside the dense model that is served. tokens: drafted at a time, at most.

    several_kinds: the model's blocks attend in more than one way.
    """

    folder: Path
    plan: Plan
    tokens: int
    several_kinds: bool = False

    @property
    def speculative_config(self) -> dict[str, Any]:
        """Return what vLLM's `--speculative-config` takes."""
        return {"method": "draft_model", "model": str(self.folder), "num_speculative_tokens": self.tokens}


@dataclass(frozen=True)
class ServedModel:
    """A checked model that is about to be served.

    reference: a folder or hub id, as the user named it. folder: what vLLM opens.
    manifest: where it is one of ours. draft: where a pruned model drafts for it.
    """

    reference: str
    folder: str
    manifest: Manifest | None = None
    draft: Draft | None = None

    @property
    def needs_loader(self) -> bool:
        """Tell whether vLLM's own load formats cannot do it: weights that lie elsewhere, or that two models share."""
        return self.draft is not None or (self.manifest is not None and self.manifest.weights == "virtual")

    def describe(self) -> dict[str, Any]:
        """The answer of `GET /v1/pruning`."""
        drafted = {"draft": self._describe_draft(self.draft)} if self.draft else {}
        if self.manifest is None:
            return {"pruned": False, "model": self.reference, **drafted}
        plan = self.manifest.plan
        return {
            "pruned": True,
            "model": self.reference,
            "dense": plan.dense.model_dump(exclude={"block_parameters", "parts", "proof"}),
            "block_indices": "0-based",
            "dropped_blocks": list(plan.dropped),
            "kept_blocks": list(plan.kept),
            "block_ratio": plan.block_ratio,
            "parameter_ratio": plan.parameter_ratio,
            "method": plan.method,
            "settings": plan.settings,
            "quality": plan.quality.model_dump() if plan.quality else None,
            **({"healing": self.manifest.healing.model_dump()} if self.manifest.healing else {}),
            "weights": self.manifest.weights,
            "weight_bytes": self.manifest.weight_bytes,
            "dense_weight_bytes": self.manifest.dense_weight_bytes,
        }

    @staticmethod
    def _describe_draft(draft: Draft) -> dict[str, Any]:
        return {
            "block_indices": "0-based",
            "dropped_blocks": list(draft.plan.dropped),
            "kept_blocks": list(draft.plan.kept),
            "block_ratio": draft.plan.block_ratio,
            "tokens": draft.tokens,
        }


def served_model(reference: str, *, dummy: bool = False, revision: str | None = None) -> ServedModel:
    """Check a model before it is served. A local folder, and a pruned checkpoint of the hub, must be whole.

    dummy: vLLM makes the weights up; a config is enough then. revision: of a hub id.
    """
    folder = Path(reference)
    if not folder.exists():
        if HUB_ID.fullmatch(reference.partition("@")[0]) is None:
            raise UserError(f"model {reference}: no such folder, and not a hub id (owner/name)")
        if "@" in reference:
            raise UserError(f"model {reference}: vLLM takes a commit by --revision; leave out what stands after the @")
        return _on_hub(reference, revision)
    if not is_pruned(folder):
        if dummy:
            read_config(folder)
        else:
            _check_is_whole_model(folder)
        return ServedModel(reference, reference)
    manifest = read_manifest(folder)
    _check(folder, manifest)
    return ServedModel(reference, reference, manifest)


def _on_hub(reference: str, revision: str | None) -> ServedModel:
    """A pruned checkpoint is fetched and served as a folder. A dense one is left to vLLM.

    So is what cannot be had here: vLLM may know the way (a token of its own, another hub).
    """
    try:
        small = fetch(reference, (), revision=revision)
    except UserError:
        return ServedModel(reference, reference)
    if not is_pruned(small):
        return ServedModel(reference, reference)
    manifest = read_manifest(small)
    folder = fetch(at_commit(reference, small), tuple(manifest.files))
    _check(folder, manifest)
    return ServedModel(reference, str(folder), manifest)


def planned_model(
    reference: str, plan: Path, scratch: Path, *, adapter: Path | None = None, assume_uniform: bool = False
) -> ServedModel:
    """Return the dense model `reference` without the blocks that a plan drops, as a virtual folder in `scratch`.

    adapter: a file of `mi-prun heal --adapter` for that plan; it is merged as the blocks are read.
    """
    read = Plan.read(plan)
    if adapter is not None:
        from mi_prun.recovery.adapter import healed_by, read_adapter  # torch is not loaded for what needs none

        learned = read_adapter(adapter, read)  # before a model is fetched
    _check_is_dense(reference, "--plan")
    dense = open_dense(reference, read)
    healed = None if adapter is None else healed_by(adapter, learned, dense)
    folder = scratch / "pruned"
    manifest = write_checkpoint(dense, read, folder, virtual=True, assume_uniform=assume_uniform, healed=healed)
    return ServedModel(reference, str(folder), manifest)


def drafted_model(
    reference: str, draft: Path, tokens: int | None, scratch: Path, *, assume_uniform: bool = False
) -> ServedModel:
    """Return the dense model `reference` and a draft: those of its blocks that a plan, or a pruned folder, keeps.

    Of a hub id vLLM gets the folder that was fetched: of a branch that moves on it would fetch another model than the
    draft's, which could then share nothing.
    tokens: None takes the plan's own number (`mi-prun plan --for draft`), or DRAFT_TOKENS.
    """
    if not draft.exists():
        raise UserError(f"--draft {draft}: no such file or folder; name a plan.json or a pruned folder")
    if draft.is_dir():
        manifest = read_manifest(draft)
        check_unhealed_draft(f"--draft {draft}", manifest)
        plan, assume_uniform = manifest.plan, assume_uniform or manifest.assume_uniform
    else:
        plan = Plan.read(draft)
    _check_is_dense(reference, "--draft")
    folder = scratch / "draft"
    dense = open_model(resolve(reference))
    write_checkpoint(dense, plan, folder, virtual=True, assume_uniform=assume_uniform)
    planned = plan.settings.get("draft_tokens")
    chosen = tokens or (planned if isinstance(planned, int) and planned > 0 else DRAFT_TOKENS)
    return ServedModel(
        reference,
        reference if Path(reference).is_dir() else str(dense.path),
        draft=Draft(folder, plan, chosen, len(set(block_kinds(dense.config))) > 1),
    )


def _check_is_dense(reference: str, flag: str) -> None:
    if is_pruned(Path(reference)):
        raise UserError(f"--model {reference} is itself a pruned model; {flag} needs the dense one it was made from")


def _check_is_whole_model(folder: Path) -> None:
    """A config of ours without its manifest is a copy that lost a file, or was made by hand."""
    if read_config_entry(read_config(folder).get("mi_prun"), origin=str(folder)) is not None:
        raise UserError(f"{folder} is a pruned checkpoint without its {MANIFEST_NAME}; apply the plan again")
    open_model(folder)


def _check(folder: Path, manifest: Manifest) -> None:
    entry = check_entry(folder, read_config_entry(read_config(folder).get("mi_prun"), origin=str(folder)), manifest)
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder}: {name} is named in {MANIFEST_NAME} but missing; apply the plan again")
        if path.stat().st_size != digest.num_bytes and name.endswith(".safetensors"):
            raise UserError(
                f"{folder}: {name} has {path.stat().st_size} bytes, {MANIFEST_NAME} says {digest.num_bytes}"
            )
    verify_structure(folder, manifest)
    if manifest.weights == "virtual":
        _check_base(folder, manifest, entry.base)


def _check_base(folder: Path, manifest: Manifest, base: str) -> None:
    """The dense model behind a virtual folder must be the one it was made for, byte digests and config included."""
    try:
        dense = open_dense(base, manifest.plan)
        manifest.plan.check_belongs_to_folder(dense)
    except UserError as error:
        raise UserError(f"{folder}: its dense model cannot be used: {error}") from error
    wanted = reduce_config(dense.config, manifest.plan.kept, assume_uniform=manifest.assume_uniform)
    wanted["mi_prun"] = config_entry(manifest.plan, manifest.weights, base)
    written = read_config(folder)
    if differing := sorted(name for name in wanted.keys() | written.keys() if wanted.get(name) != written.get(name)):
        raise UserError(
            f"{folder}: config field {differing[0]!r} is not what the kept blocks of {base} need; apply the plan again"
        )
