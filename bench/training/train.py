"""`mi-prun-bench train`: train a small language model from any text, on CPU or CUDA, as the bundled one was made.

While it runs, `OUTPUT.training/` beside the output holds the tokens, the settings and the last checkpoint (weights,
optimizer, step). An interrupt saves one; after a kill -9 the last one is there, whole. The same command goes on from
it. The output appears whole at the end, and the training folder goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.quality.perplexity import perplexity_of
from bench.records.machine import this_machine, versions
from bench.training.corpus import Corpus, TextIdentity, text_file, write_corpus
from bench.training.train_settings import TrainSettings
from mi_prun.artefact import Artefact, Record
from mi_prun.checkpoint.card import table
from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.files import check_output, new_file, new_folder, one_line_os_errors, sync, write_text
from mi_prun.model.loading import load_block_model, pick_device
from mi_prun.model.model_folder import open_model
from mi_prun.quality.evaluator import Evaluator
from mi_prun.quality.quality import protocol
from mi_prun.text.text_source import path_and_field

CORPUS, SETTINGS, STATE = "corpus", "training.json", "state.safetensors"
SAVE_SECONDS = 60.0
WARM_UP_SHARE, LAST_RATE_SHARE = 0.03, 0.1
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
MOMENTS = ("exp_avg", "exp_avg_sq")


class Training(Artefact):
    """What a training folder belongs to. Only the same command goes on from it."""

    schema_name: ClassVar[str] = "training"

    settings: TrainSettings
    texts: tuple[TextIdentity, ...]


class Trained(Record):
    """A trained model. perplexity: of the written bf16 weights on the held-out text, which neither model nor tokenizer
    saw.
    """

    model: str
    parameters: int
    tokens_seen: int
    seconds: float
    perplexity: float
    held_out_tokens: int
    device: str


def train(
    texts: Sequence[str], out: Path, settings: TrainSettings, *, device: str | None = None, force: bool = False
) -> Trained:
    """Train, and write a model folder. Raises UserError before anything is written for what will not do."""
    settings.check()
    check_output(out, force=force, inputs=[path_and_field(text)[0] for text in texts])
    place = pick_device(device)
    files = [text_file(text) for text in texts]
    training = Training(settings=settings, texts=tuple(file.identity for file in files))
    folder = out.absolute().parent / f"{out.name}.training"
    with _owned(folder, training):
        if not (folder / CORPUS).is_dir():
            with new_folder(folder / CORPUS) as partial:
                write_corpus(files, partial, vocabulary=settings.vocabulary)
        corpus = Corpus(folder / CORPUS, settings.context)
        model = new_model(settings, corpus).to(place)
        seconds = fit(model, corpus, settings, folder / STATE)
        trained = _write(model, corpus, training, out, seconds, force)
    shutil.rmtree(folder, ignore_errors=True)
    return trained


@contextlib.contextmanager
def _owned(folder: Path, training: Training) -> Iterator[None]:
    """Hold a training folder that belongs to `training` and that no other run works in."""
    if (folder / SETTINGS).exists():
        if Training.read(folder / SETTINGS) != training:
            raise UserError(
                f"{folder} holds a training of other settings or text; give those again, another output, or remove it"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not a training folder; it would be written to: move it away")
    with one_line_os_errors(folder):
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise UserError(f"another training works in {folder}; wait for it or choose another output") from error
    try:
        training.write(folder / SETTINGS)
        yield
    except UserError:
        if not (folder / STATE).exists():  # text that will not do leaves nothing behind
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def new_model(settings: TrainSettings, corpus: Corpus) -> nn.Module:
    """Make a random float32 model, the same for the same seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        settings.family,
        vocab_size=corpus.sizes.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=math.ceil(settings.hidden * 2.5 / 32) * 32,
        num_hidden_layers=settings.blocks,
        num_attention_heads=settings.heads,
        num_key_value_heads=max(1, settings.heads // 2),
        head_dim=settings.hidden // settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=corpus.tokenizer.bos_token_id,
        eos_token_id=corpus.tokenizer.eos_token_id,
        use_sliding_window=False,
        rms_norm_eps=1e-6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        made: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return made


def fit(model: nn.Module, corpus: Corpus, settings: TrainSettings, state: Path) -> float:
    """Train to the last step, from the checkpoint `state` if there is one. Return the seconds of all runs together.

    Ctrl-C and SIGTERM end it after the step that runs, with a checkpoint.
    """
    device = next(model.parameters()).device
    optimizer = _optimizer(model, settings)
    step, seconds = _load(state, model, optimizer) if state.exists() else (0, 0.0)
    if step:
        print(f"going on from step {step:,} of {settings.steps:,}", file=sys.stderr)
    count = settings.windows_per_step
    forward: Any = torch.compile(model) if device.type == "cuda" else model
    model.train()
    begun = saved = time.monotonic()

    def save(loss: float) -> None:
        _save(state, model, optimizer, step, seconds + time.monotonic() - begun)
        if not sys.stderr.isatty():
            rate = (step - first) * count * settings.context / (time.monotonic() - begun)
            print(f"step {step:,}/{settings.steps:,}  loss {loss:.3f}  {rate:,.0f} tokens/s", file=sys.stderr)

    first, loss = step, torch.zeros(())
    title = f"training {settings.blocks} blocks"
    with _stop_requests() as requests, progress(title, settings.steps * count * settings.context, "tokens") as advance:
        advance(step * count * settings.context)
        while step < settings.steps:
            windows = corpus.batch(step * count, count, settings.seed).to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = forward(input_ids=windows, labels=windows).loss
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            advance(windows.numel())
            due = time.monotonic() - saved > SAVE_SECONDS
            if due or requests or step == settings.steps:
                if not torch.isfinite(loss):
                    raise UserError(f"the loss is {float(loss.detach())} at step {step}; try a smaller --learning-rate")
                save(float(loss.detach()))
                saved = time.monotonic()
            if requests and step < settings.steps:
                print(f"stopped at step {step:,}; the same command goes on from it", file=sys.stderr)
                raise KeyboardInterrupt if requests[0] == signal.SIGINT else SystemExit(128 + requests[0])
    return seconds + time.monotonic() - begun


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return the rate of a step: a linear warm-up, then a cosine down to LAST_RATE_SHARE of the highest rate."""
    warm_up = max(1, round(WARM_UP_SHARE * settings.steps))
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    share = (step - warm_up) / max(1, settings.steps - warm_up)
    cosine = (1 + math.cos(math.pi * share)) / 2
    return settings.learning_rate * (LAST_RATE_SHARE + (1 - LAST_RATE_SHARE) * cosine)


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect signals that ask for an end. A second one ends at once."""
    requests: list[int] = []

    def ask(signum: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(signum)

    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _save(path: Path, model: nn.Module, optimizer: torch.optim.AdamW, step: int, seconds: float) -> None:
    """Write one file, whole or not at all: weights, the two moments of each, the step."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach().contiguous()
        for moment in MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].contiguous()
    with new_file(path) as partial:
        partial.write_bytes(save(tensors, {"step": str(step), "seconds": str(seconds)}))


def _load(path: Path, model: nn.Module, optimizer: torch.optim.AdamW) -> tuple[int, float]:
    """Restore what `_save` wrote; return the step and the seconds."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            about = file.metadata()
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(name))
                moments = {moment: file.get_tensor(f"{moment}/{name}").to(parameter.device) for moment in MOMENTS}
                # The fused kernel wants the step beside the weights.
                steps = torch.tensor(float(about["step"]), device=parameter.device)
                optimizer.state[parameter] = {"step": steps, **moments}
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}; remove {path.parent} to begin again") from error
    return int(about["step"]), float(about["seconds"])


def _write(
    model: Any,
    corpus: Corpus,
    training: Training,
    out: Path,
    seconds: float,
    force: bool,
) -> Trained:
    """Write the model folder: bf16 weights, tokenizer, and a card with the perplexity of just these weights."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    settings = training.settings
    device = next(model.parameters()).device
    logging.disable_progress_bar()
    with new_folder(out, force=force) as folder:
        try:
            model.to(torch.bfloat16).save_pretrained(folder)
        except SafetensorError as error:  # a full disk: no OSError there
            raise UserError(f"cannot write {out}: {error}; the training is kept, the same command goes on") from error
        corpus.tokenizer.save_pretrained(folder)
        written = load_block_model(open_model(folder), device=device, dtype=torch.float32)
        evaluator = Evaluator(written, corpus.held_out())
        trained = Trained(
            model=out.name,
            parameters=sum(p.numel() for p in model.parameters()),
            tokens_seen=settings.steps * settings.windows_per_step * settings.context,
            seconds=seconds,
            perplexity=perplexity_of(evaluator),
            held_out_tokens=evaluator.predicted_tokens,
            device=device.type,
        )
        write_text(folder / "README.md", card(trained, training, corpus))
        for path in folder.iterdir():
            sync(path)
    return trained


def card(trained: Trained, training: Training, corpus: Corpus) -> str:
    """Return the model card: what the model is, of what text, how long, how good."""
    shape, sizes, machine = training.settings, corpus.sizes, this_machine()
    held_out = protocol(shape.context, corpus.bos)
    where = machine.gpu if trained.device == "cuda" and machine.gpu else f"{machine.cpu}, {machine.cores} cores"
    package_versions = versions()
    rows = [
        (
            "architecture",
            f"{shape.family}, {shape.blocks} blocks, hidden {shape.hidden}, {shape.heads} heads",
        ),
        ("parameters", f"{trained.parameters:,}, bf16, tied embeddings"),
        ("tokenizer", f"byte-level BPE trained on the same text, {sizes.vocabulary:,} entries"),
        ("context", f"{shape.context} tokens"),
        ("text", f"{sizes.train_characters:,} characters, {sizes.train_tokens:,} tokens"),
        ("tokens seen", f"{trained.tokens_seen:,}"),
        ("held-out perplexity", f"{trained.perplexity:.2f} over {trained.held_out_tokens:,} tokens"),
        ("time", f"{trained.seconds / 60:.0f} minutes on {where}"),
        ("versions", ", ".join(f"{name} {package_versions[name]}" for name in ("mi-prun", "torch", "transformers"))),
    ]
    texts = [(f.name, f"{f.num_bytes:,}", f.sha256) for f in training.texts]
    options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in shape.model_dump().items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        f"# {trained.model}\n\nTrained from scratch by\n\n"
        f"    mi-prun-bench train {' '.join(f.name for f in training.texts)} -o {trained.model} {options}\n\n"
        + table(("", ""), rows)
        + f"\n\nHeld out is the end of each file ({sizes.held_out_characters:,} characters in all), which neither the "
        f"model nor the tokenizer saw; {held_out}; measured on the written bf16 weights, computed in fp32.\n\n"
        + table(("text file", "bytes", "sha256"), texts)
        + "\n\nA model for tests and studies, too small to be of use.\n"
    )
