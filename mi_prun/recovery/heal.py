"""`mi-prun heal`: dense model + plan -> a folder with the kept blocks, healed; or nothing, where that is no better.

The closed form first, then the training, then the gate: on held-out text the student, rounded as it will be written,
must be better than the pruned model without healing.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from mi_prun.analysis.ranks import ALONE, Ranks, joined, local_device
from mi_prun.analysis.streamed_model import StreamedModel
from mi_prun.architecture.architecture import Family, block_of
from mi_prun.checkpoint.checkpoint import check_room, write_checkpoint
from mi_prun.checkpoint.healing import AskedTask, Healed, Healing
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.console import kept, progress, say
from mi_prun.errors import UserError, first_line
from mi_prun.files import (
    check_apart,
    check_output,
    new_file,
    one_line_os_errors,
    remove_abandoned_files,
    scratch_folder,
)
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import free_bytes, load_block_model, pick_device, pick_dtype
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.model.shard import read_shard
from mi_prun.plan.plan import Plan
from mi_prun.recovery.adapter import Adapter, dense_tensor, write_adapter, write_tensors
from mi_prun.recovery.choice_task import ChoiceTask
from mi_prun.recovery.closed_form import Refit, fitted_runs, refit, refitted
from mi_prun.recovery.healing_text import MANUAL, HealingText, SampledText, load_healing_text
from mi_prun.recovery.judge import Judge, Judged, NoBetterError, compared
from mi_prun.recovery.shared_weights import SharedWeights, check_peft
from mi_prun.recovery.streamed_fit import STORED, fit_streamed
from mi_prun.recovery.training import Training
from mi_prun.recovery.training_state import OWN, Progress, SavedState, load_state, state_path
from mi_prun.settings import LEARNING_RATES, MOST_MINUTES, SELF, HealSettings, check_seed
from mi_prun.text.calibration import tokens_digest
from mi_prun.text.text_source import text_digest
from mi_prun.text.weighted_source import check_sources, parse_sources, text_files

TRAIN_BYTES = 20  # a trained parameter in float32: itself, its gradient, two moments, and the best one so far
LEAST_WINDOW = 8
# Settings that a training alone has.
OF_TRAINING = {
    "learning_rate", "warm_up", "batch_tokens", "temperature", "ce_share", "checkpoint_blocks", "train_dtype", "tokens",
    "minutes", "validation_tokens",
}  # fmt: skip


def heal_folder(
    pruned: Path, out: Path, settings: HealSettings, *, model: str | None = None, adapter: Path | None = None,
    virtual: bool = False, force: bool = False,
) -> Manifest:  # fmt: skip
    """Heal a pruned folder, by the dense model that its manifest names, or that `model` names where it has moved."""
    check_settings(settings)
    check_output(out, force=force, inputs=text_files(settings.sources))
    if adapter is not None:
        check_apart(pruned, adapter, "pruned", "--adapter")
        _check_adapter(adapter, out, settings, force=force)
    manifest = read_manifest(pruned)
    if manifest.healing is not None:
        raise UserError(
            f"{pruned} is healed already ({manifest.healing.method}, {manifest.healing.seen_tokens:,} tokens); heal "
            "the pruned folder that it was made of"
        )
    check_apart(pruned, out, "pruned")
    plan = manifest.plan
    try:
        dense = open_model(model or plan.dense.name)
    except UserError as error:
        if model is not None:
            raise
        raise UserError(f"{pruned} was made of {plan.dense.name}: {error}; say where it is with --model") from error
    with joined(may_shard=True) as ranks:
        return heal(
            dense, plan, out, settings, assume_uniform=manifest.assume_uniform, adapter=adapter, virtual=virtual,
            force=force, ranks=ranks,
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
    ranks: Ranks = ALONE,
) -> Manifest:
    """Write the healed checkpoint of what `plan` keeps of `dense` into `out`. adapter: a file for what was learned.
    virtual: the folder holds what was learned, and no other weights. sampled: text of `self` that is there already.
    ranks: the processes that share the training; rank 0 judges and writes, and all of them return. load: gives the
    model, which is another one after it.

    Raises UserError, with nothing written, for settings that do not fit; NoBetterError where healing does not help.
    """
    check_settings(settings)
    if ranks.sharded and settings.train == "all":
        raise UserError(
            "--train all holds the trained blocks whole on each process, and FSDP is asked for: take --train lora, or "
            "leave FSDP out of accelerate's configuration"
        )
    check_output(out, force=force)
    check_apart(dense.path, out)
    if adapter is not None:
        check_apart(dense.path, adapter, named="--adapter")
        _check_adapter(adapter, out, settings, force=force)
    plan.check_belongs_to(dense.identity)
    if not plan.dropped:
        raise UserError("the plan drops no block: there is nothing to heal")
    if settings.train == "none":
        fitted_runs(plan.dropped)  # refused where the closed form has nothing to refit
    family = dense.family
    check_healable(dense)
    if not virtual:
        check_room(dense, plan, out, 0 if settings.train == "none" else _trained_bytes(dense, plan))
    window = dense.context_tokens(cap=settings.window_tokens)
    dense.check_window(window)
    if settings.stream_blocks:
        return _heal_streamed(
            dense, plan, out, settings, window, adapter, virtual=virtual, max_shard_bytes=max_shard_bytes, force=force,
            assume_uniform=assume_uniform, ranks=ranks,
        )  # fmt: skip
    start, used = time.monotonic(), dict[str, str | int | float | bool | None](window_tokens=window)
    texts = digests(settings)  # before the training: a file may be gone after it
    path, fingerprint = state_path(out), fingerprint_of(plan, settings, sampled)
    saved = _state_of(path, fingerprint, force=force)
    with one_line_memory_errors(settings), one_line_os_errors(out):
        place = pick_device(local_device(settings.device))
        home = torch.device("cpu") if ranks.sharded else place
        model = load() if load else load_block_model(dense, device=home, dtype=pick_dtype(place, settings.dtype))
        weights = SharedWeights(model, plan.dropped, family.block_prefix)
        names = check_weights(weights, dense, settings)  # before the long work
        if settings.train == "all":
            check_trainable(weights, shown=ranks.first)
        if ranks.sharded:
            weights.shard(place, refitted(weights))
        text = load_healing_text(
            parse_sources(settings.sources),
            dense.tokenizer,
            window_tokens=window,
            tokens=_text_tokens(settings) if sampled is None else settings.tokens,
            validation_tokens=settings.validation_tokens,
            gate_tokens=settings.gate_tokens,
            seed=settings.seed,
            model=model.model,
            sampled=sampled,
            check=dense.check_tokens,
            ranks=ranks,
        )
        if settings.tokens is not None:
            text.check_tokens(settings.tokens, window)
        saved = _of_this_text(saved, path, text, force=force)
        gate = Judge(weights, text.gate, settings.windows_at_once(window))
        begun = time.monotonic()
        before = ranks.from_first(gate.measure, runs_model=True)
        task = ChoiceTask(weights, dense.tokenizer)
        dense.check_tokens(task.tokens)
        answers = ranks.from_first(lambda: [task.dense(), task.student()], runs_model=True)
        gate_seconds = ranks.from_first(lambda: time.monotonic() - begun)  # one clock: all ranks end at one step
        if ranks.first:
            _say_before(before)
        fitted = prepare(weights, text, settings, saved, window, shown=ranks.first)
        ranks.same(own.own for own in weights.own.values())
        taught = Progress(
            fit_tokens=fitted,
            seconds=ranks.from_first(lambda: time.monotonic() - start),
            held_out_sha256=text.held_out_sha256,
        )
        if saved is None and ranks.first:
            path.unlink(missing_ok=True)
        if settings.train != "none":
            training = Training(
                weights, text, Judge(weights, text.validation, gate.batch), settings,
                path=path, fingerprint=fingerprint, reserved_seconds=gate_seconds, begun=taught, ranks=ranks,
            )  # fmt: skip
            try:
                taught = _train(training, saved)
                helped = taught.tokens > 0 and taught.helped
                settings = settings if helped else untrained(settings, taught, shown=ranks.first)
            except NoBetterError:
                path.unlink(missing_ok=True)  # it would come to the same end
                raise
            if helped:
                used |= {
                    "train_dtype": str(training.dtype).removeprefix("torch."),
                    "batch_tokens": training.step_tokens,
                }
            else:
                taught = replace(taught, tokens=0)
            del training  # its moments and best state are large
        dtypes = {name: STORED[dense.tensors[file][1].dtype] for name, file in names.items()}
        learned = weights.learned(names, dtypes)
        healed: dict[str, Tensor] = {}

        def merged() -> Iterator[tuple[str, Tensor]]:
            """What was learned merged into the dense tensors, as the files have these, not as they were run."""
            for name in (name for name in names if names[name] in learned.names):
                tensor = learned.merged(names[name], dense_tensor(dense, names[name]))
                if ranks.first:  # it writes; the others have one at a time
                    healed[name] = tensor
                yield name, tensor

        weights.settle(merged())
        quality = ranks.from_first(lambda: compared(before, gate.measure()), runs_model=True)
        answers.append(ranks.from_first(task.student, runs_model=True))
    healing = Healing(
        method=" + ".join([*["fit"] * bool(taught.fit_tokens), *[settings.train] * (settings.train != "none")]),
        text=text.name,
        tokens=taught.tokens,
        fit_tokens=taught.fit_tokens,
        seconds=round(taught.seconds, 1),
        seed=settings.seed,
        text_digests=texts,
        settings=recorded(settings) | used,
        quality=quality,
        tasks=(asked_task(task.name, *answers),),
    )
    try:
        check_helps(healing)
    except NoBetterError:
        path.unlink(missing_ok=True)  # there is nothing to go on with
        raise

    def write() -> Manifest:
        tensors = {names[name]: tensor for name, tensor in healed.items()}
        manifest = _written(
            dense, plan, out, healing, tensors, learned, adapter, virtual=virtual, max_shard_bytes=max_shard_bytes,
            force=force, assume_uniform=assume_uniform,
        )  # fmt: skip
        path.unlink(missing_ok=True)
        return manifest

    return ranks.from_first(write)


def _trained_bytes(dense: ModelFolder, plan: Plan) -> int:
    """Return the bytes of the blocks that a training changes: they lie on the disk twice for a while."""
    trained = [block for block in plan.kept if block >= min(plan.dropped) - 1]
    return sum(info.num_bytes for name, (_, info) in dense.tensors.items() if block_of(name, dense.family) in trained)


def _check_adapter(adapter: Path, out: Path, settings: HealSettings, *, force: bool) -> None:
    """Refuse a file for what was learned that lies in the healed folder, or would overwrite something."""
    check_apart(out, adapter, "healed", "--adapter")
    check_output(adapter, force=force, folder=False, inputs=text_files(settings.sources))


def _heal_streamed(
    dense: ModelFolder, plan: Plan, out: Path, settings: HealSettings, window: int, adapter: Path | None, *,
    virtual: bool, max_shard_bytes: int, force: bool, assume_uniform: bool, ranks: Ranks,
) -> Manifest:  # fmt: skip
    """`heal` by the closed form alone, with one block in memory at a time. No task is asked."""
    if ranks.size > 1:
        raise UserError("--stream-blocks runs as one process")
    start, texts = time.monotonic(), digests(settings)
    place = pick_device(settings.device)
    with one_line_memory_errors(settings), one_line_os_errors(out):
        streamed = StreamedModel(dense, device=place, dtype=pick_dtype(place, settings.dtype))
        text = load_healing_text(
            parse_sources(settings.sources), dense.tokenizer, window_tokens=window, tokens=settings.fit_tokens,
            validation_tokens=settings.validation_tokens, gate_tokens=settings.gate_tokens, seed=settings.seed,
            model=None, check=dense.check_tokens,
        )  # fmt: skip
        tokens = _fit_text(text, settings, window)
        judged_tokens = sum(kind.tokens.numel() for kind in text.gate)
        total = (tokens.numel() + judged_tokens) * dense.num_blocks
        with progress("closed form, block by block", total, "block-tokens") as advance:
            made = fit_streamed(
                streamed, plan.dropped, tokens, text.gate, ridge=settings.ridge,
                batch_windows=settings.windows_at_once(window), advance=advance,
            )  # fmt: skip
    _say_before(made.before)
    _say_fits(made.fits)
    healing = Healing(
        method="fit", text=text.name, tokens=0, fit_tokens=tokens.numel(),
        seconds=round(time.monotonic() - start, 1), seed=settings.seed, text_digests=texts,
        settings=recorded(settings) | {"window_tokens": window}, quality=compared(made.before, made.after),
    )  # fmt: skip
    check_helps(healing)
    learned = Adapter(made.tensors, {}, {})
    return _written(
        dense, plan, out, healing, made.tensors, learned, adapter, virtual=virtual, max_shard_bytes=max_shard_bytes,
        force=force, assume_uniform=assume_uniform,
    )  # fmt: skip


def _written(
    dense: ModelFolder, plan: Plan, out: Path, healing: Healing, tensors: Mapping[str, Tensor], learned: Adapter,
    adapter: Path | None, *, virtual: bool, max_shard_bytes: int, force: bool, assume_uniform: bool,
) -> Manifest:  # fmt: skip
    """Write the healed checkpoint, and what was learned into the file `adapter`, where one is named."""
    with contextlib.ExitStack() as stack:
        if adapter is not None:  # written before the folder is, and put in place after it
            remove_abandoned_files(adapter)
            write_adapter(stack.enter_context(new_file(adapter)), learned, plan, healing)
        stack.enter_context(one_line_os_errors(out))
        made = stack.enter_context(_result(out, plan, healing, tensors, learned, virtual=virtual))
        return write_checkpoint(
            dense, plan, out, virtual=virtual, max_shard_bytes=max_shard_bytes, force=force,
            assume_uniform=assume_uniform, healed=made,
        )  # fmt: skip


def _train(training: Training, saved: SavedState | None) -> Progress:
    """Train to the end, from a saved state where there is one."""
    if saved is not None:
        training.resume(saved)
        step = saved.progress
        if training.ranks.first:
            say(f"going on from step {step.step:,}, {step.tokens:,} tokens ({training.path.name})")
    before = training.progress.tokens
    with (
        kept(lambda: _kept_of(training)),
        progress(
            "healing",
            1 - training.share_done,
            "tokens",
            shown=training.ranks.first,
            counted=lambda: training.progress.tokens - before,
        ) as advance,
    ):
        progress_made = training.run(advance)
    trained = math.ceil(training.progress.tokens / training.text.validation[0].tokens.shape[1])
    if training.ranks.first and (said := training.text.repeated(trained)):
        say(said)
    return progress_made


def _kept_of(training: Training) -> str:
    """Say what an interrupt leaves of a training."""
    every = f"every {training.settings.save_minutes:g} minutes"
    if training.path.exists():
        return f"nothing was written; the same command goes on from the state saved last, {every}"
    return f"nothing was written, and no state was saved yet ({every} one is): the same command begins anew"


def check_helps(healing: Healing) -> None:
    """The gate. Raises NoBetterError where the healed model is not better on every held-out text.

    On text that the user did not name it need only be nearer to the dense model, which may be bad at it.
    """
    for kind in healing.quality:
        if not (kind.nearer if kind.text == MANUAL else kind.better):
            raise NoBetterError(
                f"healing ({healing.method}) does not help: on {kind.text} the perplexity is "
                f"{kind.healed_perplexity:.4g} healed and {kind.pruned_perplexity:.4g} without, KL to the dense model "
                f"{kind.healed_kl_nats:.4g} and {kind.pruned_kl_nats:.4g}; nothing is written"
            )


def prepare(
    weights: SharedWeights, text: HealingText, settings: HealSettings, saved: SavedState | None, window: int,
    *, shown: bool = True,
) -> int:  # fmt: skip
    """Give the student what it starts with: the closed form, then what is trained. Returns the tokens fitted on.

    shown: say what is done.
    """
    fitted = 0
    if saved is not None:
        fitted = saved.progress.fit_tokens
        for name, tensor in saved.groups[OWN].items():
            weights.give(name, tensor.to(weights.shared(name)))
    elif settings.fit:
        fitted = _fit(weights, text, settings, window, shown=shown)
    if settings.train == "all":
        weights.give_all(torch.float32)
    elif settings.train == "lora":
        weights.adapt(settings.rank, 2 * settings.rank, settings.seed)
    return fitted


def _fit_text(text: HealingText, settings: HealSettings, window: int, *, shown: bool = True) -> Tensor:
    """Return the windows that the closed form is fitted on, each once, where a text is shorter than asked for."""
    tokens = text.windows(0, settings.fit_windows(window))
    different: Tensor = torch.unique(tokens, dim=0)
    if len(different) == len(tokens):
        return tokens
    if shown:
        say(f"closed form: {text.name} has {different.numel():,} of the {settings.fit_tokens:,} tokens")
    return different


def _text_tokens(settings: HealSettings) -> int | None:
    """Return how many tokens of text must be there; None: as many as time allows."""
    if settings.train == "none":
        return settings.fit_tokens
    return settings.tokens and max(settings.tokens, settings.fit_tokens * settings.fit)


def _state_of(path: Path, fingerprint: str, *, force: bool) -> SavedState | None:
    """Return the state to go on from. force: one of another healing, or that cannot be read, is none."""
    try:
        return load_state(path, fingerprint)
    except UserError:
        if not force:
            raise
        return None


def _of_this_text(saved: SavedState | None, path: Path, text: HealingText, *, force: bool) -> SavedState | None:
    """Return the state to go on from. What is sampled from a model on a GPU may come out otherwise the next time."""
    if saved is None or saved.progress.held_out_sha256 == text.held_out_sha256:
        return saved
    if force:
        return None
    raise UserError(
        f"{path} is the state of a healing on text that was sampled otherwise, as other memory was free; remove it, or "
        "give --force to begin anew"
    )


def _fit(weights: SharedWeights, text: HealingText, settings: HealSettings, window: int, *, shown: bool) -> int:
    """The closed form; returns the tokens fitted on, 0 where it does not fit the family and training follows."""
    tokens = _fit_text(text, settings, window, shown=shown)
    try:
        with progress("closed form", tokens.numel() * max(weights.dropped), "block-tokens", shown=shown) as advance:
            fits = refit(
                weights,
                tokens,
                ridge=settings.ridge,
                batch_windows=settings.windows_at_once(tokens.shape[1]),
                advance=advance,
            )
    except UserError as error:
        if settings.train == "none":
            raise
        if shown:
            say(f"closed form left out: {error}")
        weights.own.clear()
        return 0
    if shown:
        _say_fits(fits)
    return tokens.numel()


def asked_task(name: str, dense: Sequence[bool], pruned: Sequence[bool], healed: Sequence[bool]) -> AskedTask:
    """What is recorded of a task; one entry an item, whether the answer was right."""
    return AskedTask(
        task=name,
        items=len(dense),
        dense_right=sum(dense),
        pruned_right=sum(pruned),
        healed_right=sum(healed),
        flips=sum(old != new for old, new in zip(pruned, healed, strict=True)),
    )


def _say_fits(fits: Sequence[Refit]) -> None:
    for each in fits:
        say(f"{each.name}: squared error {each.error_before:.3f} -> {each.error_after:.3f} of the dense state's square")


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
    with scratch_folder(out) as folder:
        file = folder / "healed.safetensors"
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
        raise UserError(f"--train must be lora or all, got {settings.train!r}")
    if settings.train == "none":
        if not settings.fit:
            raise UserError("neither the closed form nor a training is asked for: nothing would be healed")
    elif settings.stream_blocks:
        raise UserError("--stream-blocks goes with --fit: a training needs the whole model in memory")
    elif (settings.tokens is None) == (settings.minutes is None):
        raise UserError("a healing is as long as --tokens or --minutes says: give one of the two")
    whole = {"--tokens": settings.tokens, "--rank": settings.rank, "--batch-tokens": settings.batch_tokens}
    for option, value in whole.items():
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    if settings.minutes is not None and not 0 < settings.minutes < MOST_MINUTES:
        raise UserError(f"--minutes must be over 0 and under {MOST_MINUTES:,}, got {settings.minutes}")
    if settings.window_tokens < LEAST_WINDOW:
        raise UserError(f"--window must be at least {LEAST_WINDOW}, got {settings.window_tokens}")
    if not 0 < settings.temperature < 100:
        raise UserError(f"--temperature must be over 0 and under 100, got {settings.temperature}")
    if not 0 <= settings.ce_share <= 1:
        raise UserError(f"--ce-share must be 0 to 1, got {settings.ce_share}")
    if settings.train_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"--train-dtype must be float32 or bfloat16, got {settings.train_dtype!r}")
    if settings.learning_rate is not None and not 0 < settings.learning_rate < 1:
        raise UserError(f"--learning-rate must be over 0 and under 1, got {settings.learning_rate}")
    if SELF in check_sources(settings.sources) and settings.stream_blocks:
        raise UserError("--stream-blocks needs --calibration TEXT: sampling text needs the whole model in memory")
    if settings.train == "lora":
        check_peft()  # last: its import takes seconds


def check_trainable(weights: SharedWeights, *, shown: bool = True) -> None:
    """Say what a training of whole blocks takes. Raises UserError where so much memory is not free."""
    parameters = sum(weights.shared(name).numel() for name in weights.names(weights.trained_blocks))
    needed, free = TRAIN_BYTES * parameters, free_bytes(weights.model.device)
    said = (
        f"--train all: {parameters:,} parameters are trained and take {needed / 1e9:.2f} GB more, beside what they "
        f"compute; {free / 1e9:.2f} GB are free"
    )
    if needed > free:
        raise UserError(f"{said}: take --train lora")
    if shown:
        say(said)


def check_healable(dense: ModelFolder) -> None:
    """Refuse quantised weights: they are healed before they are quantised."""
    if dense.config.get("quantization_config"):
        raise UserError(f"model {dense.path} is quantised: heal first, then quantise")


def check_model(model: BlockModel, dense: ModelFolder, settings: HealSettings) -> None:
    """Refuse a model that cannot be healed, before its blocks are chosen. Raises UserError.

    The last block but one stands for all: the first ones, which may be of another kind, are mostly not trained.
    """
    check_weights(SharedWeights(model, (model.num_blocks - 1,), dense.family.block_prefix), dense, settings)


def check_weights(weights: SharedWeights, dense: ModelFolder, settings: HealSettings) -> dict[str, str]:
    """Return the names in the files of what may be healed. Raises UserError for what does not lie there, or adapt."""
    names = file_names(weights, dense, dense.family)
    if settings.train == "lora":
        weights.adaptable(settings.rank)
    return names


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


FREE_TO_CHANGE = ("checkpoint_blocks", "save_minutes")  # between two starts of a healing: they change no result


def digests(settings: HealSettings) -> tuple[str, ...]:
    """Return what tells the texts of a healing from others, in their order."""
    return tuple(text_digest(source.name) for source in parse_sources(settings.sources))


def fingerprint_of(plan: Plan, settings: HealSettings, sampled: SampledText | None = None) -> str:
    """What an interrupted healing must agree in to be gone on with."""
    said = {
        "dense": plan.dense.weights_sha256, "dropped": plan.dropped,
        "settings": {name: value for name, value in asdict(settings).items() if name not in FREE_TO_CHANGE},
        "texts": digests(settings),
        "sampled": None if sampled is None else tokens_digest(sampled.healing),
    }  # fmt: skip
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def untrained(settings: HealSettings, taught: Progress, *, shown: bool) -> HealSettings:
    """Return the settings of a healing that no training made better, or that had no time for one: the closed form's.

    Raises UserError where there was no closed form; NoBetterError where there was a training.
    """
    if taught.tokens:
        first, *later = taught.checks_nats
        said = (
            f"--train {settings.train} ended after {taught.tokens:,} tokens: KL to the dense model on validation text "
            f"was {first:.4g} nats before it, and {min(later):.4g} at best since"
        )
        more = f"take a lower --learning-rate than {settings.rate:g}"
    else:
        said = f"--minutes {settings.minutes:g} were over before the first step of the training"
        more = "give more for a training"
    if not taught.fit_tokens:
        raise (NoBetterError if taught.tokens else UserError)(f"{said}: nothing was healed; {more}")
    if shown:
        say(f"{said}: what is written is the closed form's; {more}")
    return replace(settings, train="none")


def recorded(settings: HealSettings) -> dict[str, str | int | float | bool | None]:
    """The settings that a manifest records, beside what it has fields for. What was not used is left out."""
    left_out = {"sources", "seed", "device", "save_minutes", "forward_tokens"}
    if settings.train == "none":
        left_out |= OF_TRAINING
    if settings.train != "lora":
        left_out |= {"rank"}
    said = asdict(settings) | {"learning_rate": settings.rate}
    if settings.share_of_rms is not None:
        said["share_of_rms"] = settings.share_of_rms
    return {name: value for name, value in said.items() if name not in left_out}


@contextlib.contextmanager
def one_line_memory_errors(settings: HealSettings) -> Iterator[None]:
    """A processor without memory left is one line, as an accelerator is everywhere."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = first_line(error) or type(error).__name__
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in said:
            raise
        less = "--checkpoint-blocks, fewer --batch-tokens, or a shorter --window"
        if settings.train == "none":
            less = "--device cpu" if settings.stream_blocks else "--stream-blocks"
        raise UserError(f"out of memory while healing ({said}); take {less} of `mi-prun heal`") from error
