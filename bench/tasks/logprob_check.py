"""Check that the log-probabilities an endpoint returns are those of the model, as transformers computes them.

    python -m bench.tasks.logprob_check MODEL --device cpu       prints token ids and log-probabilities as JSON

The direct side runs in a process of its own, before an engine is started: what it took on the device is free then.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.engines.endpoint import Endpoint
from bench.models.whole_folder import virtual_parts, whole_folder
from bench.records.task_schema import TOLERANCE_MEAN_NATS, LogprobCheck
from mi_prun.artefact import Record
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.model.loading import free_bytes, load_block_model
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.quality.evaluator import Dropped

STRINGS = (
    "The old man opened the door and looked at the sea. There was nothing on it but a small white sail.",
    "Question: Which of these is a metal?\nAnswer: iron, because it conducts heat and electricity well.",
    "In 1912 the price rose from 3.50 to 4.25 a barrel, that is by 21 %; a year later it fell to 2.80.",
    "def area(width, height):\n    return width * height  # both in metres",
)
MAX_TOKENS = 128  # of a string
HALF = {"BF16": torch.bfloat16, "F16": torch.float16}


class Direct(Record):
    """What transformers computes. tokens: of each string. logprobs: of each string's tokens but the first, in nats.

    rounding_nats: how far transformers itself is from them on the mean, in the 16-bit type that the model is stored in;
    0 for another type. An engine computes in that type.
    """

    computed: str
    rounding_nats: float = 0.0
    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]


def direct_logprobs(model: str, device: str | None = None) -> Direct:
    """Compute log-probabilities by transformers, in a process of its own. Raises UserError where that fails."""
    command = [sys.executable, "-P", "-m", "bench.tasks.logprob_check", model]
    command += ["--device", device] if device else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("error: ") if said else f"status {done.returncode}"
        raise UserError(f"log-probabilities of {model} by transformers: {reason} (--no-logprob-check leaves them out)")
    return Direct.model_validate_json(done.stdout.strip().splitlines()[-1])


def check_logprobs(endpoint: Endpoint, direct: Direct, tolerance: float = TOLERANCE_MEAN_NATS) -> LogprobCheck:
    """Compare an endpoint with transformers.

    Raises UserError where they differ on the mean by more than `tolerance` nats and what the model's own type rounds.
    """
    differences = [
        abs(theirs - ours)
        for tokens, logprobs in zip(direct.tokens, direct.logprobs, strict=True)
        for theirs, ours in zip(endpoint.prompt_logprobs(tokens), logprobs, strict=True)
    ]
    if not all(map(math.isfinite, differences)):
        raise UserError(f"{endpoint.url} returns log-probabilities that are not finite numbers; is its model damaged?")
    check = LogprobCheck(
        strings=len(direct.tokens),
        tokens=len(differences),
        mean_nats=sum(differences) / len(differences),
        max_nats=max(differences),
        tolerance_mean_nats=tolerance,
        direct=direct.computed,
        rounding_nats=direct.rounding_nats,
    )
    if check.mean_nats > check.let_pass_nats:
        rounds = f" and the {check.rounding_nats:.4f} that its type rounds" if check.rounding_nats else ""
        raise UserError(
            f"the log-probabilities of {endpoint.url} are not those of the model: over {check.tokens} tokens they "
            f"differ by {check.mean_nats:.4f} nats on the mean (at most {check.max_nats:.4f}) from transformers' "
            f"({check.direct}), more than {tolerance:g}{rounds}; is it another model, or a quantised one "
            "(--logprob-tolerance)?"
        )
    return check


def measure(model: str, device_name: str | None) -> Direct:
    """Compute the log-probabilities of a dense model, a pruned checkpoint or a virtual one."""
    with _run_of(model) as (folder, dropped):
        return _direct(folder, dropped, device_name)


@contextlib.contextmanager
def _run_of(model: str) -> Iterator[tuple[ModelFolder, Dropped]]:
    """Yield the weights to run for a model, and the blocks to bypass in them."""
    from mi_prun.plan.plan import open_dense

    parts = virtual_parts(model)
    if parts is not None and parts[0].healing is None:
        manifest, base = parts
        yield open_dense(base, manifest.plan), manifest.plan.dropped
        return
    with whole_folder(model) as whole:
        yield open_model(whole), ()


def _direct(folder: ModelFolder, dropped: Dropped, device_name: str | None) -> Direct:
    from mi_prun.model.loading import free_accelerators, pick_device, pick_dtype
    from mi_prun.text.calibration import start_tokens

    device = pick_device(device_name)
    dtype = pick_dtype(device)
    check_memory(folder, device, dtype)
    tokenizer = folder.tokenizer
    first = start_tokens(tokenizer)
    tokens = [(*first, *tokenizer(text, add_special_tokens=False)["input_ids"])[:MAX_TOKENS] for text in STRINGS]
    logprobs = computed(folder, dropped, tokens, device, dtype)
    rounding = 0.0
    free_accelerators()  # of the first model, before the room for the second is looked at
    if other := other_precision(folder, device, dtype):
        rounded = computed(folder, dropped, tokens, device, other)
        rounding = float((torch.cat(rounded) - torch.cat(logprobs)).abs().mean())
    return Direct(
        computed=f"{str(dtype).removeprefix('torch.')}, {device.type}",
        rounding_nats=rounding,
        tokens=tuple(tokens),
        logprobs=tuple(tuple(row.tolist()) for row in logprobs),
    )


@torch.inference_mode()
def computed(
    folder: ModelFolder, dropped: Dropped, tokens: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Compute the log-probabilities of each row's tokens but the first: a row each, (tokens - 1,), nats."""
    rows = []
    with load_block_model(folder, device=device, dtype=dtype).without(dropped) as model:
        for row in tokens:
            ids = torch.tensor([row], device=device)
            scores = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), dim=-1)
            said = scores.gather(-1, ids[0, 1:, None])[:, 0]
            if not said.isfinite().all():
                raise UserError(f"{folder.name} gives log-probabilities that are not finite numbers; is it damaged?")
            rows.append(said.cpu())
    return rows


def other_precision(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> torch.dtype | None:
    """Return what to compute in once more, to see what the model's 16-bit type rounds; None where it is stored in
    another type, or where an accelerator has no room for float32.
    """
    ((stored, _),) = Counter(info.dtype for _, info in folder.tensors.values()).most_common(1)
    if stored not in HALF:
        return None
    if dtype == torch.float32:
        return HALF[stored]
    need, free = memory_of(folder, device, torch.float32)
    return torch.float32 if need <= free else None


def memory_of(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes that a model takes on the device, and those that are free there."""
    parameters = sum(math.prod(info.shape) for _, info in folder.tensors.values())
    return parameters * dtype.itemsize, free_bytes(device)


def check_memory(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model that does not fit into the memory that is free, before it is read."""
    need, free = memory_of(folder, device, dtype)
    if need > free:
        raise UserError(f"{folder.name} takes {need / 2**30:.1f} GiB there, {free / 2**30:.1f} GiB are free")


def main() -> None:
    """Print the log-probabilities of a model, as the module's docstring says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--device")
    own = parser.parse_args()
    sys.exit(run_command(lambda: print(measure(own.model, own.device).model_dump_json())))


if __name__ == "__main__":
    main()
