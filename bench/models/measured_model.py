"""Open the models of a run: one dense model, and any number that were made from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from bench.models.healed_quality import healed_by, judged_quality
from bench.models.weights import Weights, weights_of
from bench.records.schema import Blocks, DenseModel, MeasuredArm, MeasuredOn
from mi_prun.architecture.architecture import Config
from mi_prun.checkpoint.healing import Healing
from mi_prun.checkpoint.manifest import MANIFEST_NAME, Manifest, is_pruned
from mi_prun.errors import UserError
from mi_prun.model.identity import ModelIdentity
from mi_prun.model.model_folder import ModelFolder, open_model, resolve
from mi_prun.plan.plan import Plan, Quality


@dataclass(frozen=True)
class MeasuredModel:
    """A model to measure.

    weight_bytes: by the safetensors headers. weights: what a step of it reads; None for a family that is not known.
    plan: None for the dense model. flags: for its server, beyond the run's own. healing: None where there was none.
    """

    arm: MeasuredArm
    weight_bytes: int
    weights: Weights | None
    plan: Plan | None = None
    flags: tuple[str, ...] = ()
    quality: Quality | None = None
    quality_measured_on: MeasuredOn | None = None
    healing: Healing | None = None


@dataclass(frozen=True)
class MeasuredModels:
    """The models of a run. The dense one stands first in `all`; the others were made from it.

    config: the dense model's. folder, identity: where the dense model lies and what tells it from others, opened once
    and handed down; None for a shape. quality_text: what tells the text of `with_quality_on` from others; None where
    the plans' own figures are kept.
    """

    dense: DenseModel
    all: tuple[MeasuredModel, ...]
    config: Config
    folder: ModelFolder | None = None
    identity: ModelIdentity | None = None
    quality_text: str | None = None

    @property
    def context(self) -> int | None:
        """Tokens that the dense model can hold, where its config says."""
        return context_of(self.config)


def open_measured_models(dense: str, pruned: Sequence[str], drafts: Sequence[Path] = ()) -> MeasuredModels:
    """Open the dense model, pruned folders, and plans that draft for it.

    Raises UserError for what is no model, is named twice, or was made from another model.
    """
    for what, named in (("pruned folder", pruned), ("draft", [str(path) for path in drafts])):
        if twice := [name for name in named if named.count(name) > 1]:
            raise UserError(f"{what} {twice[0]} is named twice")
    return with_made(open_dense(dense), pruned, drafts)


def open_dense(dense: str) -> MeasuredModels:
    """Open the dense model alone. Raises UserError for a pruned one. Its weights are read for its identity, once."""
    folder = open_model(dense)
    if is_pruned(folder.path):
        raise UserError(f"--dense {dense} is itself a pruned model; name the dense one")
    identity = folder.identity
    none = Blocks(num_blocks=identity.num_blocks, dropped=(), block_ratio=0.0, parameter_ratio=0.0, method=None)
    arm = MeasuredArm(kind="dense", label="dense", model=dense, blocks=none, weights=None)
    model = MeasuredModel(arm, folder.weight_bytes, _weights(folder))
    return MeasuredModels(dense_of(dense, identity), (model,), folder.config, folder, identity)


def with_made(models: MeasuredModels, pruned: Sequence[str], drafts: Sequence[Path] = ()) -> MeasuredModels:
    """Return the dense model of `models` with pruned folders and drafts beside it.

    Raises UserError for what is no model, or was made from another one.
    """
    assert models.identity is not None  # nothing is made from a shape
    first, identity = models.all[0], models.identity
    made = [_pruned(name, identity, first.weights) for name in pruned]
    drafted = [_draft(path, identity, first) for path in drafts]
    return replace(models, all=tuple(told_apart(_on_the_same_text([first, *made, *drafted]))))


def _on_the_same_text(models: Sequence[MeasuredModel]) -> list[MeasuredModel]:
    """Return the models, each pruned one with the quality that healing measured of it, where a healed one is there.

    Its plan's text may be among what was healed on, and says nothing beside the healed one's.
    """
    before = {
        model.arm.blocks.dropped: judged_quality(model.healing, healed=False)
        for model in models
        if model.healing is not None
    }

    def judged(model: MeasuredModel) -> MeasuredModel:
        quality = before.get(model.arm.blocks.dropped) if model.arm.kind == "pruned" and not model.healing else None
        return replace(model, quality=quality, quality_measured_on="healing") if quality else model

    return [judged(model) for model in models]


def plan_digest(plan: Plan) -> str:
    """Return the digest of all that a plan says, whatever its dense model is called."""
    said = plan.model_dump(mode="json", exclude={"dense": {"name"}})
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def blocks_digest(dropped: Sequence[int]) -> str:
    """Return eight digits that tell dropped blocks from others, for the name of a folder."""
    return sha256(",".join(map(str, dropped)).encode()).hexdigest()[:8]


def dense_of(name: str, identity: ModelIdentity) -> DenseModel:
    """Return what records say of a dense model."""
    return DenseModel(
        name=name,
        model_type=identity.model_type,
        shape=None,
        config_sha256=identity.config_sha256,
        weights_sha256=identity.weights_sha256,
    )


def open_measured_model(name: str) -> tuple[DenseModel, MeasuredModel]:
    """Open a model, dense or pruned; with it goes the dense one that it is or was made from.

    The dense model of a pruned one need not be at hand.
    """
    path = resolve(name)
    if not is_pruned(path):
        models = open_dense(name)
        return models.dense, models.all[0]
    identity = Manifest.read(path / MANIFEST_NAME).plan.dense
    return dense_of(identity.name, identity), _pruned(name, identity, None)


def context_of(config: Config) -> int | None:
    """Return how many tokens a model can hold, where its config says."""
    text = config.get("text_config")
    context = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    return context if isinstance(context, int) else None


def blocks_of(plan: Plan) -> Blocks:
    """Return what records say of a plan's blocks."""
    return Blocks(
        num_blocks=plan.dense.num_blocks,
        dropped=plan.dropped,
        block_ratio=plan.block_ratio,
        parameter_ratio=plan.parameter_ratio,
        method=plan.method,
    )


def _weights(folder: ModelFolder) -> Weights | None:
    with contextlib.suppress(UserError):
        return weights_of(folder)
    return None


def _pruned(name: str, dense: ModelIdentity, weights: Weights | None) -> MeasuredModel:
    path = resolve(name)
    if not is_pruned(path):
        raise UserError(f"{name} is not a folder that `mi-prun apply` wrote ({MANIFEST_NAME} is missing)")
    manifest = Manifest.read(path / MANIFEST_NAME)
    plan = manifest.plan
    plan.check_belongs_to(dense)
    if manifest.weights == "materialized" and (held := open_model(name).weight_bytes) != manifest.weight_bytes:
        raise UserError(
            f"{name} has {held:,} bytes of weights, its {MANIFEST_NAME} says {manifest.weight_bytes:,}; "
            "apply the plan again"
        )
    healing = manifest.healing
    quality = plan.quality if healing is None else judged_quality(healing, healed=True)
    measured_on: MeasuredOn = "plan" if healing is None else "healing"
    return MeasuredModel(
        arm=MeasuredArm(
            kind="pruned",
            label=f"{plan.method} {plan.block_ratio:.1%}{' healed' if healing else ''}",
            model=name,
            blocks=blocks_of(plan),
            weights=manifest.weights,
            healing=healed_by(healing),
        ),
        weight_bytes=manifest.weight_bytes,
        weights=weights.keep(plan.kept) if weights else None,
        plan=plan,
        quality=quality,
        quality_measured_on=measured_on if quality else None,
        healing=healing,
    )


def _draft(path: Path, dense: ModelIdentity, first: MeasuredModel) -> MeasuredModel:
    """Open a draft. The dense model and its draft share their weights: together they read what the dense one has."""
    plan = Manifest.read(path / MANIFEST_NAME).plan if path.is_dir() else Plan.read(path)
    plan.check_belongs_to(dense)
    tokens = plan.settings.get("draft_tokens")
    return MeasuredModel(
        arm=MeasuredArm(
            kind="draft",
            label=f"draft {plan.method} {plan.block_ratio:.1%}",
            model=first.arm.model,
            blocks=blocks_of(plan),
            weights="virtual",
            draft_tokens=tokens if isinstance(tokens, int) else None,
        ),
        weight_bytes=first.weight_bytes,
        weights=None,
        plan=plan,
        flags=("--draft", str(path)),
    )


def told_apart(models: Sequence[MeasuredModel]) -> list[MeasuredModel]:
    """Give each pruned or drafted model a label of its own: rounds, engines and quality go by the label.

    Labels that stand twice get the folder's name behind them, or the blocks; those that still do, the whole path.
    """
    labelled = list(models)
    for name_of in (_short_name, _path):
        labels = [model.arm.label for model in labelled]
        twice = {label for label in labels if labels.count(label) > 1}
        for i, model in enumerate(labelled):
            if model.arm.kind != "dense" and model.arm.label in twice:
                label = f"{models[i].arm.label} ({name_of(model)})"
                labelled[i] = replace(model, arm=model.arm.model_copy(update={"label": label}))
    return labelled


def _short_name(model: MeasuredModel) -> str:
    arm = model.arm
    return Path(arm.model).name if arm.kind == "pruned" else f"without {'-'.join(map(str, arm.blocks.dropped))}"


def _path(model: MeasuredModel) -> str:
    return model.arm.model if model.arm.kind == "pruned" else model.flags[-1]
