"""`mi-prun inspect`: describe what was dropped and what it cost, and check that the folder is whole."""

from __future__ import annotations

from pathlib import Path

from mi_prun.architecture.architecture import num_blocks, reduce_config
from mi_prun.architecture.proof import Proof
from mi_prun.checkpoint.healing import Healing
from mi_prun.checkpoint.manifest import MANIFEST_NAME, Manifest, config_entry
from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.files import sha256_of
from mi_prun.model.identity import structure_digest
from mi_prun.model.model_folder import open_model, read_config
from mi_prun.plan.block_map import text_map
from mi_prun.plan.plan import Plan

WEIGHTS_AND_CODE = (".safetensors", ".bin", ".pt", ".pth", ".py")


def describe(path: Path) -> str:
    """Describe a pruned folder or a plan.json in a few lines. Raises UserError if it is neither."""
    if path.is_dir():
        manifest = read_manifest(path)
        return "\n".join(
            [
                f"{path}: {manifest.weights} checkpoint, "
                f"{manifest.weight_bytes / 1e6:,.1f} of {manifest.dense_weight_bytes / 1e6:,.1f} MB of weights",
                *describe_plan(manifest.plan, manifest.block_kinds),
                *describe_proof(manifest.proof),
                *describe_healing(manifest.healing),
                *(["assumed      all blocks alike, by --assume-uniform"] if manifest.assume_uniform else []),
                _wholeness(path, manifest),
            ]
        )
    plan = Plan.read(path)
    return "\n".join([f"{path}: plan", *describe_plan(plan), *describe_proof(plan.dense.proof)])


def describe_plan(plan: Plan, kinds: tuple[str, ...] = ()) -> list[str]:
    """Return the lines that say what a plan drops, how it was chosen and what it cost."""
    count = plan.dense.num_blocks
    lines = [
        f"dense model  {plan.dense.name} ({plan.dense.model_type}, {count} blocks, "
        f"{plan.dense.num_parameters:,} parameters)",
        f"dropped      {', '.join(map(str, plan.dropped)) or 'none'} (block indices are 0-based)",
        f"ratio        {len(plan.dropped)} of {count} blocks ({plan.block_ratio:.1%}), "
        f"{plan.parameters_dropped:,} parameters ({plan.parameter_ratio:.1%})",
        f"method       {plan.method}; {plan.forward_passes:g} forward passes beyond the analysis",
    ]
    if plan.objective:
        lines.append(
            f"cost         J = {plan.objective.chosen_nats:.6g} nats; {plan.objective.beside()}; "
            f"{plan.objective.gap_nats:.3g} above the least of any {len(plan.dropped)} blocks"
        )
    if quality := plan.quality:
        lines.append(
            f"quality      perplexity {quality.dense_perplexity:.4g} -> {quality.pruned_perplexity:.4g}, "
            f"KL {quality.kl_nats_per_token:.4g} nats a token ({quality.text}; {quality.protocol})"
        )
    else:
        lines.append("quality      not measured")
    return [*lines, "block map", text_map(count, plan.dropped, kinds)]


def describe_proof(proof: Proof | None) -> list[str]:
    """Return the line on what shows that the blocks can be dropped; none where a rule names the family."""
    return [] if proof is None else [f"proof        {proof}"]


def describe_healing(healing: Healing | None) -> list[str]:
    """Lines on how a folder was healed; none where it was not."""
    if healing is None:
        return []
    lines = [
        f"healed       {healing.method}; {healing.seen_tokens:,} tokens of {healing.text}, {healing.seconds:.0f} s, "
        f"seed {healing.seed}"
    ]
    lines += [
        f"             perplexity dense {kind.dense_perplexity:.4g}, pruned {kind.pruned_perplexity:.4g}, healed "
        f"{kind.healed_perplexity:.4g} ({kind.gap_closed:.0%} of the gap in log-perplexity; {kind.text})"
        for kind in healing.quality
    ]
    return lines + [
        f"             {asked.task}, right of {asked.items}: dense {asked.dense_right}, pruned {asked.pruned_right}, "
        f"healed {asked.healed_right}; healing changed {asked.flips}"
        + (" (fewer than before: ask more tasks)" if asked.healed_right < asked.pruned_right else "")
        for asked in healing.tasks
    ]


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a pruned folder. Raises UserError if it is none, or a file name leads outside."""
    if not (folder / MANIFEST_NAME).is_file():
        raise UserError(f"{folder} is not a pruned checkpoint (no {MANIFEST_NAME}); make one with `mi-prun apply`")
    manifest = Manifest.read(folder / MANIFEST_NAME)
    for name in manifest.files:
        if name.startswith("/") or ".." in Path(name).parts:
            raise UserError(f"{folder / MANIFEST_NAME}: {name!r} leads outside the folder; refused")
    return manifest


def _wholeness(folder: Path, manifest: Manifest) -> str:
    fault = _first_fault(folder, manifest)
    if fault:
        return f"not whole    {fault}"
    return f"whole        all {len(manifest.files)} files are there, with the sizes they were written with"


def _first_fault(folder: Path, manifest: Manifest) -> str | None:
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != digest.num_bytes:
            return f"{name} has {size} bytes, written were {digest.num_bytes}"
    for path in sorted(folder.iterdir()):
        if path.name not in manifest.files and path.suffix in WEIGHTS_AND_CODE:
            return f"{path.name} was added after the checkpoint was written"
    return None


def verify(folder: Path) -> None:
    """Read every byte and compare it with the manifest, then the tensors with the config and the plan.

    Raises UserError with the first fault.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --verify reads a pruned checkpoint: name its folder")
    manifest = read_manifest(folder)
    if fault := _first_fault(folder, manifest):
        raise UserError(f"{folder}: {fault}")
    with progress("verifying", sum(digest.num_bytes for digest in manifest.files.values()), "bytes") as advance:
        for name, digest in manifest.files.items():
            try:
                found = sha256_of(folder / name, advance)
            except OSError as error:  # the very fault of a disk that is looked for
                raise UserError(f"{folder}: {name} cannot be read: {error.strerror}") from error
            if found != digest.sha256:
                raise UserError(f"{folder}: {name} is not as it was written (its sha256 differs); apply the plan again")
    verify_structure(folder, manifest)


def verify_structure(folder: Path, manifest: Manifest) -> None:
    """Compare config and tensors with the plan, by the headers alone. Raises UserError with the first fault."""
    _verify_config(folder, manifest)
    if manifest.weights == "materialized":
        _verify_tensors(folder, manifest)


def _verify_config(folder: Path, manifest: Manifest) -> None:
    plan, config = manifest.plan, read_config(folder)
    entry = config.get("mi_prun")
    base = entry.get("base") if isinstance(entry, dict) else None
    if not isinstance(base, str) or entry != config_entry(plan, manifest.weights, base):
        raise UserError(f"{folder}: the mi_prun entry of config.json does not agree with {MANIFEST_NAME}")
    if num_blocks(config) != len(plan.kept):
        raise UserError(f"{folder}: config.json has {num_blocks(config)} blocks, the plan keeps {len(plan.kept)}")
    reduce_config(config, range(len(plan.kept)))  # every list of blocks has the right length


def _verify_tensors(folder: Path, manifest: Manifest) -> None:
    pruned = open_model(folder)
    plan, identity = manifest.plan, pruned.identity
    wanted = tuple(plan.dense.block_parameters[block] for block in plan.kept)
    if identity.block_parameters != wanted:
        raise UserError(f"{folder}: the blocks have {identity.block_parameters} parameters, the plan keeps {wanted}")
    rest = plan.dense.num_parameters - plan.parameters_dropped
    if identity.num_parameters != rest:
        raise UserError(f"{folder}: the shards hold {identity.num_parameters} parameters, the plan keeps {rest}")
    structure = structure_digest({name: info for name, (_, info) in pruned.tensors.items()})
    if manifest.structure_sha256 not in (None, structure):
        raise UserError(f"{folder}: a tensor's name, dtype or shape is not as it was written; apply the plan again")
