"""What a step of healing costs beside a plain loop over the same tokens, in one process, in turn.

    python -m bench.studies.heal_cost MODEL --drop 13-18 -o cost.jsonl

Plain: transformers' own forward of the dense model without a gradient, forward and backward of the pruned model with
the same adapters, `kl_div` of all logits, AdamW. Healing: one step of `mi_prun.recovery.training`. Both train the same
adapters on the same tokens. The line has the seconds of each step, the ratio pair by pair, and where a step of healing
spends its time. It also has by how much the first step of each lets the memory grow beyond the weights, which are
there: activations, gradients, moments.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.records.machine import commit, this_machine, versions
from mi_prun.console import run_command
from mi_prun.files import append_line
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.plan.ratio import parse_blocks
from mi_prun.recovery.healing_text import HealingText, Supply
from mi_prun.recovery.judge import Judge
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.recovery.training import Training
from mi_prun.recovery.training_state import Progress
from mi_prun.settings import HealSettings

MANY = 10**12  # tokens that a training is asked for, so that its schedule stands still


class PlainLoop:
    """Two models, as one would write it without this package. student: the dense model's copy without the blocks."""

    def __init__(self, dense: nn.Module, student: nn.Module, settings: HealSettings) -> None:
        self.dense, self.student = dense, student
        self.trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings.rate, weight_decay=0.0, fused=True)
        self.dtype = next(dense.parameters()).dtype

    def computed(self, device: torch.device) -> torch.autocast:
        """Products in the training's own dtype."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)

    def step(self, tokens: Tensor) -> float:
        """Train on `tokens` (windows, window_tokens); returns the loss."""
        with torch.no_grad(), self.computed(tokens.device):
            wanted = self.dense(input_ids=tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        with self.computed(tokens.device):
            logits = self.student(input_ids=tokens, use_cache=False).logits[:, :-1]
        ours = logits.float().log_softmax(-1)
        count = ours[..., 0].numel()
        loss = functional.kl_div(ours.flatten(0, 1), wanted.flatten(0, 1), reduction="sum", log_target=True) / count
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def student_of(weights: SharedWeights) -> nn.Module:
    """Return a copy of the model as the student is: kept blocks, adapters on."""
    student = copy.deepcopy(weights.model.model)
    blocks = student.get_submodule(weights.prefix)
    parent, _, leaf = weights.prefix.rpartition(".")
    kept = nn.ModuleList([cast("nn.ModuleList", blocks)[block] for block in weights.kept])
    setattr(student.get_submodule(parent), leaf, kept)
    for number, block in enumerate(kept):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", number)  # noqa: B010 - not declared
            if hasattr(module, "lora_A"):
                setattr(module, "_disable_adapters", False)  # noqa: B010 - not declared
    student.config.get_text_config().num_hidden_layers = len(kept)  # type: ignore[union-attr,operator]
    return student


class Clock:
    """Adds up the seconds of named parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    def now(self) -> float:
        """Return the time when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count what `owner.name` takes under `part`."""
        real = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = self.now()
            try:
                return real(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + self.now() - begun

        setattr(owner, name, timed)


def growth_bytes(device: torch.device, step: Callable[[], object]) -> int:
    """Return by how much the memory in use grows at most while `step` runs: of the GPU, else of this process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (Linux)
    before = psutil.Process().memory_info().rss
    step()
    (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1_024 * int(peak_kib) - before


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one model."""
    folder = open_model(options.model)
    dropped = parse_blocks(options.drop, folder.num_blocks)
    model = load_on(folder, options.device, options.dtype)
    settings = HealSettings(
        tokens=MANY, batch_tokens=options.batch_tokens, forward_tokens=min(options.batch_tokens, 2048),
        window_tokens=options.window, rank=options.rank, warm_up=1e-6, train_dtype=options.train_dtype,
    )  # fmt: skip
    weights = SharedWeights(model, dropped, folder.family.block_prefix)
    weights.adapt(settings.rank, 2 * settings.rank, settings.seed)
    generator = torch.Generator().manual_seed(0)

    def windows(place: int = 0) -> Tensor:
        return torch.randint(0, model.vocab_size, (64, options.window), generator=generator)

    text = HealingText([Supply("random", 1.0, windows()[:2], windows)], 0.5)
    training = Training(
        weights, text, Judge(weights, text.validation, 1), settings, path=Path("unused"), fingerprint="",
        begun=Progress(),
    )  # fmt: skip
    plain = PlainLoop(model.model, student_of(weights), settings)
    plain.dtype = training.dtype
    clock = Clock(model.device)
    pairs, growth = [], dict[str, int]()
    for number in range(options.steps + 1):
        tokens = text.windows(training.progress.step * training.step_windows, training.step_windows)
        order: list[tuple[str, Callable[[], object]]] = [
            ("healing", training._step), ("plain", partial(plain.step, tokens.to(model.device))),
        ]  # fmt: skip
        seconds = {}
        for name, step in order[:: -1 if number % 2 else 1]:
            with weights.narrowed(training.dtype) if name == "healing" else contextlib.nullcontext():  # as `run` does
                begun = clock.now()
                if number:
                    step()
                else:
                    growth[name] = growth_bytes(model.device, step)
                seconds[name] = clock.now() - begun
        if number:  # the first one warms up
            pairs.append(seconds)
    with weights.narrowed(training.dtype):
        parts = parts_of(training, clock)
    return {
        "model": folder.path.name, "dropped": list(dropped), "dtype": str(model.dtype).removeprefix("torch."),
        "train_dtype": str(training.dtype).removeprefix("torch."),
        "step_tokens": training.step_tokens, "trained": sum(p.numel() for p in weights.trained.values()),
        "healing_s": [round(pair["healing"], 3) for pair in pairs],
        "plain_s": [round(pair["plain"], 3) for pair in pairs],
        "ratio": round(median(pair["healing"] / pair["plain"] for pair in pairs), 3),
        "tokens_per_s": round(training.step_tokens / median(pair["healing"] for pair in pairs), 1),
        "parts_s": parts, "growth_bytes": growth,
        "dense_bytes": sum(p.nbytes for p in weights.model.model.parameters() if not p.requires_grad),
        "machine": this_machine().model_dump(), "versions": versions(), "commit": commit(),
    }  # fmt: skip


def parts_of(training: Training, clock: Clock) -> dict[str, float]:
    """Return the seconds of the parts of one more step: forwards, loss with the head, backward, optimizer."""
    weights = training.weights
    real = weights.run

    def run(state: Tensor, blocks: Any) -> Tensor:
        blocks = list(blocks)
        part = "student forward" if torch.is_grad_enabled() else ("prefix" if blocks[:1] == [0] else "teacher forward")
        begun = clock.now()
        after = real(state, blocks)
        clock.seconds[part] = clock.seconds.get(part, 0.0) + clock.now() - begun
        return after

    weights.run = run  # type: ignore[method-assign]
    autograd, backward = torch.autograd, torch.autograd.backward
    clock.wrap(autograd, "backward", "backward of the blocks")
    clock.wrap(training.optimizer, "step", "optimizer")
    begun = clock.now()
    training._step()
    whole = clock.now() - begun
    torch.autograd.backward = backward
    weights.run = real  # type: ignore[method-assign]
    parts = {name: round(seconds, 3) for name, seconds in clock.seconds.items()}
    return parts | {"loss and the rest": round(whole - sum(clock.seconds.values()), 3), "step": round(whole, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--drop", required=True, help="blocks to drop, of `mi-prun plan`")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=1_024)
    parser.add_argument("--window", type=int, default=HealSettings.window_tokens)
    parser.add_argument("--rank", type=int, default=HealSettings.rank)
    parser.add_argument("--dtype", help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--train-dtype", help="default: what `mi-prun heal` takes here")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()

    def work() -> None:
        line = json.dumps(measure(options))
        print(line)
        if options.output is not None:
            append_line(options.output, line)

    sys.exit(run_command(work))


if __name__ == "__main__":
    main()
