"""The training of the student: AdamW on what it has of its own, warm-up and cosine, until tokens or time end.

One step: `batch_tokens` of text, some windows at a time. What stands before the first trained block runs once; then
the teacher runs all blocks without a gradient and the student its own; the loss is `Distillation`. Nothing is drawn
at random here: a training that goes on from its saved state computes what it would have computed.

Several processes share the windows of a step. Gradients are summed, so each takes the step that one process alone would
take of all windows; nothing else travels, but frozen blocks where they are sharded. Rank 0 keeps the time, checks
and saves.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mi_prun.analysis.ranks import ALONE, Ranks
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import multiplies_bfloat16, pick_dtype
from mi_prun.recovery.distillation import Distillation
from mi_prun.recovery.healing_text import HealingText
from mi_prun.recovery.judge import Judge, NoBetterError
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.recovery.training_state import (
    BEST,
    MOMENTS,
    OWN,
    TRAINED,
    Progress,
    SavedState,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)
from mi_prun.settings import HealSettings

CHECK_AT = (0.0, 0.35, 0.7, 1.0)  # of the whole training
LEAST_RATE = 0.02  # of the learning rate, at the end of the cosine
MOST_GRADIENT = 1.0
LEAST_RMS = 1e-3  # of a tensor, Adafactor's floor: one of zeros is trained too
BATCH_TOKENS = {"cpu": 512}  # twice the steps win a point or more; a GPU has no use for so few tokens at once
ACCELERATOR_BATCH_TOKENS = 1_024


def train_dtype(model: BlockModel, name: str | None) -> torch.dtype:
    """Return what a training computes products in. name: float32 or bfloat16; None takes the model's own dtype, and
    bfloat16 on a processor that multiplies it.

    Raises UserError for float32 where the model is computed in another dtype: products are never rounded less.
    """
    if name is None and model.device.type == "cpu" and model.dtype == torch.float32 and multiplies_bfloat16():
        return torch.bfloat16
    dtype = model.dtype if name is None else pick_dtype(model.device, name)
    if dtype == torch.float32 and model.dtype != dtype:
        own = str(model.dtype).removeprefix("torch.")
        raise UserError(f"--train-dtype float32: the model is in {own} on {model.device}; leave the option out")
    return dtype


def step_windows(batch_tokens: int | None, window: int, device: torch.device, processes: int) -> int:
    """Return how many windows a step has. batch_tokens: None fits the device, and has as many for each process."""
    if batch_tokens is not None:
        return max(1, round(batch_tokens / window))
    fits = round(BATCH_TOKENS.get(device.type, ACCELERATOR_BATCH_TOKENS) / window)
    return processes * max(1, math.ceil(fits / processes))


class Training:
    """One healing by gradients. Its progress counts the seconds of all starts; `begun`: what came before it."""

    def __init__(
        self,
        weights: SharedWeights,
        text: HealingText,
        judge: Judge,
        settings: HealSettings,
        *,
        path: Path,
        fingerprint: str,
        reserved_seconds: float = 0.0,
        begun: Progress,
        ranks: Ranks = ALONE,
    ) -> None:
        self.weights, self.text, self.judge, self.settings = weights, text, judge, settings
        self.path, self.fingerprint, self.ranks = path, fingerprint, ranks
        self.dtype = train_dtype(weights.model, settings.train_dtype)
        self.loss = Distillation(settings.temperature, settings.ce_share)
        self.trained = weights.trained
        self.names: dict[nn.Parameter, str] = {parameter: name for name, parameter in self.trained.items()}
        self.optimizer = torch.optim.AdamW(
            self._groups(), betas=(0.9, 0.95), weight_decay=0.0, fused=weights.model.device.type in ("cpu", "cuda")
        )
        self.progress = begun
        self.best: dict[str, Tensor] = {}
        self._reserved = reserved_seconds
        self._start = time.monotonic() - begun.seconds
        self._saved = time.monotonic()
        window = text.validation[0].tokens.shape[1]
        self.step_windows = step_windows(settings.batch_tokens, window, weights.model.device, ranks.size)
        self.micro_windows = min(self.step_windows, settings.windows_at_once(window))
        self.step_tokens = self.step_windows * window
        if self.step_windows < ranks.size:
            raise UserError(
                f"--batch-tokens {settings.batch_tokens} are {self.step_windows} windows of {window} tokens, and "
                f"{ranks.size} processes share them; give at least {ranks.size * window}"
            )
        if ranks.sharded and self.step_windows % ranks.size:
            raise UserError(
                f"--batch-tokens {settings.batch_tokens} are {self.step_windows} windows of {window} tokens; with FSDP "
                f"each of {ranks.size} processes runs as many: give a multiple of {ranks.size * window}"
            )

    def _groups(self) -> list[dict[str, Any]]:
        """The trained tensors by the share of the learning rate that they get.

        A step of Adam moves each number by about the rate, however small the tensor's numbers are. So where the blocks
        are trained whole, by the default rate, a tensor of small numbers gets less: a share of its root mean square (as
        Adafactor has it, arXiv 1804.04235), of zeros a floor. Adapters begin alike in every model.
        """
        of_rms = self.settings.share_of_rms
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.trained.items():
            share = 1.0
            if of_rms is not None:
                rms = float(self.weights.shared(name).detach().float().square().mean().sqrt())
                share = min(1.0, of_rms * max(rms, LEAST_RMS) / self.settings.rate)
            groups[share].append(parameter)
        return [{"params": parameters, "share": share} for share, parameters in groups.items()]

    def resume(self, saved: SavedState) -> None:
        """Go on from a saved state; the student's tensors that are not trained are there already."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(saved.groups[TRAINED][name])
        restore_optimizer(self.optimizer, self.names, saved.groups[MOMENTS])
        self.progress, self.best = saved.progress, saved.groups[BEST]
        self._start = time.monotonic() - saved.progress.seconds

    @property
    def share_done(self) -> float:
        """How much of the training is done, 0 to 1: by tokens where a number was asked for, else by time."""
        if self.settings.tokens is not None:
            return min(1.0, self.progress.tokens / self.settings.tokens)
        if self.settings.minutes is None:
            raise ValueError("a training has a number of tokens or of minutes")
        return min(1.0, self.progress.seconds / max(1.0, 60 * self.settings.minutes - self._reserved))

    def run(self, advance: Callable[[float], None] | None = None) -> Progress:
        """Train to the end, or to a check that is much worse than the state before the first step.

        The student is then the best state that was checked; that state is one of them.
        """
        with self.weights.narrowed(self.dtype):
            if not self.progress.checks_nats and self.share_done < 1:
                self._check()
            while self.share_done < 1 and not self.progress.stopped:
                done = self.share_done
                self._step()
                checked = len(self.progress.checks_nats)
                if checked < len(CHECK_AT) and self.share_done >= CHECK_AT[checked]:
                    self._check()
                    self.save()
                elif time.monotonic() - self._saved >= 60 * self.settings.save_minutes:
                    self.save()
                if advance is not None:
                    advance(self.share_done - done)
        with torch.no_grad():
            for name, tensor in self.best.items():
                self.trained[name].copy_(tensor)
        return self.progress

    def save(self) -> None:
        """Write the state, from which a killed training goes on. Rank 0 writes it."""
        self._saved = time.monotonic()
        if not self.ranks.first:
            return
        own: dict[str, Tensor] = {name: own.own for name, own in self.weights.own.items() if not own.own.requires_grad}
        groups: dict[str, dict[str, Tensor]] = {
            OWN: own, TRAINED: {**self.trained}, BEST: self.best,
            MOMENTS: optimizer_tensors(self.optimizer, self.names),
        }  # fmt: skip
        save_state(self.path, self.fingerprint, self.progress, groups)

    def rate(self, done: float) -> float:
        """The learning rate at a share of the training: linear warm-up, then a cosine down to LEAST_RATE of it."""
        warm = self.settings.warm_up
        if done < warm:
            return self.settings.rate * (done + warm / 10) / (1.1 * warm)
        cosine = 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
        return self.settings.rate * (LEAST_RATE + (1 - LEAST_RATE) * cosine)

    def _step(self) -> None:
        rate = self.rate(self.share_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        window = self.step_tokens // self.step_windows  # a run that goes on may have other steps: as many processes
        tokens = self.text.windows(self.progress.tokens // window, self.step_windows)
        total = 0.0
        for part in torch.split(self.ranks.share(tokens), self.micro_windows):
            total += self._backward(part, len(part) / len(tokens))
        total, seconds = self._summed(total)
        norm = self._clipped()
        if not math.isfinite(total) or not math.isfinite(norm):
            raise NoBetterError(
                f"the loss is NaN or Inf at step {self.progress.step + 1} of healing; nothing is written: take a lower "
                f"--learning-rate of `mi-prun heal` than {self.settings.rate:g}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress = self.progress.after(tokens.numel(), seconds)

    def _clipped(self) -> float:
        """Return the norm of the gradient, which is then MOST_GRADIENT at most. One that is short is only read."""
        parameters = list(self.trained.values())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if norm > MOST_GRADIENT:
            nn.utils.clip_grads_with_norm_(parameters, MOST_GRADIENT, norm)
        return float(norm)

    @torch.no_grad()
    def _summed(self, total: float) -> tuple[float, float]:
        """Sum the gradients and the loss over all processes. Returns the loss, and the seconds by rank 0's clock."""
        seconds = time.monotonic() - self._start
        if self.ranks.size == 1:
            return total, seconds
        parameters = list(self.trained.values())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        said = torch.tensor([total, seconds if self.ranks.first else 0.0])
        flat = torch.cat([*(gradient.flatten().float().cpu() for gradient in gradients), said])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [*(gradient.numel() for gradient in gradients), 2])
        for parameter, part in zip(parameters, parts, strict=False):
            parameter.grad = part.view_as(parameter).to(parameter)
        return float(parts[-1][0]), float(parts[-1][1])

    def _backward(self, tokens: Tensor, scale: float) -> float:
        weights, count = self.weights, self.weights.model.num_blocks
        with self._computed():
            with torch.no_grad():
                before = weights.run(weights.embed(tokens), range(weights.first))
                dense = weights.run(before, range(weights.first, count))
            with weights.student():
                state = before
                for block in weights.trained_blocks:
                    state = self._run_block(state, block)
                return self.loss.backward(weights.model, state, dense, tokens, scale)

    def _computed(self) -> contextlib.AbstractContextManager[object]:
        """Inside it products are computed in the training's own dtype; weights and sums stay what they are."""
        model = self.weights.model
        if self.dtype == model.dtype:
            return contextlib.nullcontext()
        return torch.autocast(model.device.type, self.dtype)

    def _run_block(self, state: Tensor, block: int) -> Tensor:
        if self.settings.checkpoint_blocks:
            kept: Tensor = checkpoint(self.weights.run, state, [block], use_reentrant=False)
            return kept
        return self.weights.run(state, [block])

    def _judged(self) -> tuple[float, float]:
        """The mean KL over the kinds of held-out text, and the seconds so far."""
        with self._computed():
            kl = sum(kind.kl_nats for kind in self.judge.measure()) / len(self.judge.kinds)
        return kl, time.monotonic() - self._start

    def _check(self) -> None:
        """Measure the state on validation text; the best one is kept."""
        kl, seconds = self.ranks.from_first(self._judged, runs_model=True)
        before = self.progress.checks_nats
        if kl < min(before, default=math.inf):
            self.best = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.progress = replace(self.progress, seconds=seconds, checks_nats=(*before, kl))
