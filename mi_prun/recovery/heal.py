"""`mi-prun heal`: dense model + plan -> a folder with the kept blocks, healed; or nothing, where that is no better.

The closed form first, then the training, then the gate: on held-out text the student, rounded as it will be written,
must be better than the pruned model without healing.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from mi_prun.architecture.architecture import Family
from mi_prun.checkpoint.checkpoint import check_apart, write_checkpoint
from mi_prun.checkpoint.healing import Healed, Healing
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.console import progress, say
from mi_prun.errors import UserError, first_line
from mi_prun.files import check_output, one_line_os_errors
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.model.shard import read_shard
from mi_prun.plan.plan import Plan
from mi_prun.recovery.adapter import Adapter, write_adapter, write_tensors
from mi_prun.recovery.closed_form import refit
from mi_prun.recovery.healing_text import HealingText, SampledText, load_healing_text, parse_sources
from mi_prun.recovery.judge import Judge, Judged, compared
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.recovery.training import Training
from mi_prun.recovery.training_state import OWN, Progress, SavedState, load_state, state_path
from mi_prun.settings import LEARNING_RATES, HealSettings, check_seed
from mi_prun.text.calibration import tokens_digest
from mi_prun.text.text_source import text_digest

STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
TRAIN_BYTES = 16  # a trained parameter in float32: itself, its gradient, two moments
LEAST_WINDOW = 8


def heal_folder(
    pruned: Path, out: Path, settings: HealSettings, *, model: str | None = None, adapter: Path | None = None,
    virtual: bool = False, force: bool = False,
) -> Manifest:  # fmt: skip
    """Heal a pruned folder, by the dense model that its manifest names, or that `model` names where it has moved."""
    check_output(out, force=force)
    manifest = read_manifest(pruned)
    if manifest.healing is not None:
        raise UserError(
            f"{pruned} is healed already ({manifest.healing.method}, {manifest.healing.tokens:,} tokens); heal the "
            "pruned folder that it was made of"
        )
    check_apart(pruned, out)
    plan = manifest.plan
    try:
        dense = open_model(model or plan.dense.name)
    except UserError as error:
        if model is not None:
            raise
        raise UserError(f"{pruned} was made of {plan.dense.name}: {error}; say where it is with --model") from error
    return heal(
        dense, plan, out, settings, assume_uniform=manifest.assume_uniform, adapter=adapter, virtual=virtual,
        force=force,
    )  # fmt: skip


def heal(
    dense: ModelFolder,
    plan: Plan,
    out: Path,
    settings: HealSettings,
    *,
    assume_uniform: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    adapter: Path | None = None,
    virtual: bool = False,
    force: bool = False,
    load: Callable[[], BlockModel] | None = None,
    sampled: SampledText | None = None,
) -> Manifest:
    """Write the healed checkpoint of what `plan` keeps of `dense` into `out`. adapter: a file for what was learned.
    virtual: the folder holds what was learned, and no other weights. sampled: text of `self` that is there already.

    Raises UserError, with nothing written, for settings that do not fit; NoBetterError where healing does not help.
    """
    check_settings(settings)
    check_output(out, force=force)
    check_apart(dense.path, out)
    if adapter is not None:
        check_output(adapter, force=force, folder=False)
    plan.check_belongs_to(dense.identity)
    family = dense.family
    check_healable(dense)
    window = min(settings.window_tokens, dense.context_tokens())
    dense.check_window(window)
    start = time.monotonic()
    path, fingerprint = state_path(out), fingerprint_of(plan, settings, sampled)
    if force:
        path.unlink(missing_ok=True)
    saved = load_state(path, fingerprint) if settings.train != "none" else None
    with one_line_memory_errors(), one_line_os_errors(out):
        model = load() if load is not None else load_on(dense, settings.device, settings.dtype)
        weights = SharedWeights(model, plan.dropped, family.block_prefix)
        names = file_names(weights, dense, family)
        text = load_healing_text(
            parse_sources(settings.sources),
            dense.tokenizer,
            window_tokens=window,
            tokens=settings.fit_tokens if settings.train == "none" and sampled is None else settings.tokens,
            validation_tokens=settings.validation_tokens,
            gate_tokens=settings.gate_tokens,
            seed=settings.seed,
            model=model.model,
            sampled=sampled,
        )
        if settings.tokens is not None:
            text.check_tokens(settings.tokens, window)
        gate = Judge(weights, text.gate, max(1, settings.forward_tokens // window))
        begun = time.monotonic()
        before = gate.measure()
        gate_seconds = time.monotonic() - begun
        _say_before(before)
        taught = Progress(fit_tokens=prepare(weights, text, settings, saved, window), seconds=time.monotonic() - start)
        if settings.train != "none":
            training = Training(
                weights, text, Judge(weights, text.validation, gate.batch), settings,
                path=path, fingerprint=fingerprint, reserved_seconds=gate_seconds, begun=taught,
            )  # fmt: skip
            taught = _train(training, saved)
        dtypes = {name: STORED[dense.tensors[file][1].dtype] for name, file in names.items()}
        learned = weights.learned(names, dtypes)
        healed = {
            name: learned.merged(names[name], weights.shared(name).detach().cpu().to(dtypes[name]))
            for name in names
            if names[name] in learned.names
        }
        weights.settle(healed)
        quality = compared(before, gate.measure())
    healing = Healing(
        method=" + ".join([*["fit"] * bool(taught.fit_tokens), *[settings.train] * (settings.train != "none")]),
        text=text.name,
        tokens=taught.tokens,
        fit_tokens=taught.fit_tokens,
        seconds=round(taught.seconds, 1),
        seed=settings.seed,
        settings=recorded(settings) | {"window_tokens": window},
        quality=quality,
    )
    try:
        check_helps(healing)
    except NoBetterError:
        path.unlink(missing_ok=True)  # there is nothing to go on with
        raise
    tensors = {names[name]: tensor for name, tensor in healed.items()}
    with _result(out, plan, healing, tensors, learned, virtual=virtual) as made:
        manifest = write_checkpoint(
            dense, plan, out, virtual=virtual, max_shard_bytes=max_shard_bytes, force=force,
            assume_uniform=assume_uniform, healed=made,
        )  # fmt: skip
    if adapter is not None:
        write_adapter(adapter, learned, plan, healing)
    path.unlink(missing_ok=True)
    return manifest


def _train(training: Training, saved: SavedState | None) -> Progress:
    """Train to the end, from a saved state where there is one."""
    if saved is not None:
        training.resume(saved)
        step = saved.progress
        say(f"going on from step {step.step:,}, {step.tokens:,} tokens ({training.path.name})")
    with progress("healing", 1, "of it") as advance:
        return training.run(advance)


class NoBetterError(UserError):
    """The gate's: what was healed is no better than what was pruned."""


def check_helps(healing: Healing) -> None:
    """The gate. Raises NoBetterError where the healed model is not better on every held-out text."""
    for kind in healing.quality:
        if not kind.better:
            raise NoBetterError(
                f"healing ({healing.method}) does not help: on {kind.text} the perplexity is "
                f"{kind.healed_perplexity:.4g} healed and {kind.pruned_perplexity:.4g} without, KL to the dense model "
                f"{kind.healed_kl_nats:.4g} and {kind.pruned_kl_nats:.4g}; nothing is written"
            )


def prepare(
    weights: SharedWeights, text: HealingText, settings: HealSettings, saved: SavedState | None, window: int
) -> int:
    """Give the student what it starts with: the closed form, then what is trained. Returns the tokens fitted on."""
    fitted = 0
    if saved is not None:
        fitted = saved.progress.fit_tokens
        for name, tensor in saved.groups[OWN].items():
            weights.give(name, tensor.to(weights.shared(name)))
    elif settings.fit:
        fitted = _fit(weights, text, settings, max(1, settings.fit_tokens // window))
    if settings.train == "all":
        parameters = sum(weights.shared(name).numel() for name in weights.names(weights.trained_blocks))
        say(f"--train all: {parameters:,} parameters are trained and take {TRAIN_BYTES * parameters / 1e9:.2f} GB more")
        weights.give_all(torch.float32)
    elif settings.train == "lora":
        weights.adapt(settings.rank, 2 * settings.rank, settings.seed)
    return fitted


def _fit(weights: SharedWeights, text: HealingText, settings: HealSettings, windows: int) -> int:
    """The closed form; returns the tokens fitted on, 0 where it does not fit the family and training follows."""
    tokens = text.windows(0, windows)
    try:
        with progress("closed form", tokens.numel() * max(weights.dropped), "block-tokens") as advance:
            fits = refit(
                weights,
                tokens,
                ridge=settings.ridge,
                batch_windows=max(1, settings.forward_tokens // tokens.shape[1]),
                advance=advance,
            )
    except UserError as error:
        if settings.train == "none":
            raise
        say(f"closed form left out: {error}")
        weights.own.clear()
        return 0
    for each in fits:
        say(f"{each.name}: squared error {each.error_before:.3f} -> {each.error_after:.3f} of the dense state's square")
    return tokens.numel()


def _say_before(before: list[Judged]) -> None:
    for kind in before:
        say(
            f"{kind.text}: cross-entropy dense {kind.dense_ce_nats:.3f}, pruned {kind.ce_nats:.3f} nats a token, KL "
            f"{kind.kl_nats:.3f}"
        )


@contextlib.contextmanager
def _result(
    out: Path, plan: Plan, healing: Healing, tensors: Mapping[str, Tensor], learned: Adapter, *, virtual: bool
) -> Iterator[Healed]:
    """What a checkpoint takes of a healing, in a file that goes with the block: tensors, or the adapter."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.healed-", dir=out.absolute().parent) as folder:
        file = Path(folder) / "healed.safetensors"
        if virtual:
            write_adapter(file, learned, plan, healing)
            yield Healed(healing, adapter=file)
        else:
            write_tensors(file, tensors, out)
            yield Healed(healing, read_shard(file))


def check_settings(settings: HealSettings) -> None:
    """Refuse what cannot be, before a model is loaded."""
    check_seed(settings.seed)
    if settings.train not in LEARNING_RATES:
        raise UserError(f"--train must be one of {', '.join(LEARNING_RATES)}, got {settings.train!r}")
    if settings.train == "none":
        if not settings.fit:
            raise UserError("neither the closed form nor a training is asked for: nothing would be healed")
    elif (settings.tokens is None) == (settings.minutes is None):
        raise UserError("a healing is as long as --tokens or --minutes says: give one of the two")
    whole = {"--tokens": settings.tokens, "--rank": settings.rank, "--batch-tokens": settings.batch_tokens}
    for option, value in whole.items():
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    if settings.minutes is not None and not 0 < settings.minutes < 1e6:
        raise UserError(f"--minutes must be over 0, got {settings.minutes}")
    if settings.window_tokens < LEAST_WINDOW:
        raise UserError(f"--window must be at least {LEAST_WINDOW}, got {settings.window_tokens}")
    if not 0 < settings.temperature < 100:
        raise UserError(f"--temperature must be over 0 and under 100, got {settings.temperature}")
    if not 0 <= settings.ce_share <= 1:
        raise UserError(f"--ce-share must be 0 to 1, got {settings.ce_share}")
    if settings.learning_rate is not None and not 0 < settings.learning_rate < 1:
        raise UserError(f"--learning-rate must be over 0 and under 1, got {settings.learning_rate}")
    parse_sources(settings.sources)


def check_healable(dense: ModelFolder) -> None:
    """Refuse quantised weights: they are healed before they are quantised."""
    if dense.config.get("quantization_config"):
        raise UserError(f"model {dense.path} is quantised: heal first, then quantise")


def file_names(weights: SharedWeights, dense: ModelFolder, family: Family) -> dict[str, str]:
    """Name in the model -> name in the dense model's files, of every tensor that may be healed.

    Raises UserError where transformers holds them in another shape than the files do (experts in one tensor).
    """
    tensors = dense.tensors
    names = {}
    for name in weights.names(weights.trained_blocks):
        rest = name.removeprefix(f"{family.block_prefix}.")
        file = next((f"{prefix}.{rest}" for prefix in family.prefixes if f"{prefix}.{rest}" in tensors), None)
        if file is None or tensors[file][1].shape != tuple(weights.shared(name).shape):
            raise UserError(
                f"model {dense.path}: {name} does not lie in its files as transformers holds it; healing a "
                f"{family.model_type} model is not supported"
            )
        if tensors[file][1].dtype not in STORED:
            raise UserError(
                f"model {dense.path}: {file} is {tensors[file][1].dtype}; only {', '.join(STORED)} are healed"
            )
        names[name] = file
    return names


def fingerprint_of(plan: Plan, settings: HealSettings, sampled: SampledText | None = None) -> str:
    """What an interrupted healing must agree in to be gone on with."""
    texts = [text_digest(source.name) for source in parse_sources(settings.sources)]
    said = {
        "dense": plan.dense.weights_sha256, "dropped": plan.dropped, "settings": asdict(settings), "texts": texts,
        "sampled": None if sampled is None else tokens_digest(sampled.healing),
    }  # fmt: skip
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def recorded(settings: HealSettings) -> dict[str, str | int | float | bool | None]:
    """The settings that a manifest records, beside what it has fields for."""
    left_out = {"sources", "seed", "device", "save_minutes", "forward_tokens"}
    fields = {name: value for name, value in asdict(settings).items() if name not in left_out}
    return fields | {"learning_rate": settings.rate}


@contextlib.contextmanager
def one_line_memory_errors() -> Iterator[None]:
    """A processor without memory left is one line, as an accelerator is everywhere."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory while healing ({first_line(error)}); take fewer --batch-tokens, a shorter --window, or "
            "--checkpoint-blocks"
        ) from error
