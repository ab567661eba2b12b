"""Check that the log-probabilities an endpoint returns are those of the model, as transformers computes them.

    python -m bench.tasks.logprob_check MODEL --device cpu       prints token ids and log-probabilities as JSON

The direct side runs in a process of its own, before an engine is started: what it took on the device is free then.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from bench.engines.endpoint import Endpoint
from bench.records.task_schema import TOLERANCE_MEAN_NATS, LogprobCheck
from mi_prun.artefact import Record
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.model.model_folder import ModelFolder, open_model

STRINGS = (
    "The old man opened the door and looked at the sea. There was nothing on it but a small white sail.",
    "Question: Which of these is a metal?\nAnswer: iron, because it conducts heat and electricity well.",
    "In 1912 the price rose from 3.50 to 4.25 a barrel, that is by 21 %; a year later it fell to 2.80.",
    "def area(width, height):\n    return width * height  # both in metres",
)
MAX_TOKENS = 128  # of a string


class Direct(Record):
    """What transformers computes. tokens: of each string. logprobs: of each string's tokens but the first, in nats."""

    computed: str
    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]


def direct_logprobs(model: str, device: str | None = None) -> Direct:
    """Compute log-probabilities by transformers, in a process of its own. Raises UserError where that fails."""
    command = [sys.executable, "-m", "bench.tasks.logprob_check", model]
    command += ["--device", device] if device else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("error: ") if said else f"status {done.returncode}"
        raise UserError(f"log-probabilities of {model} by transformers: {reason} (--no-logprob-check leaves them out)")
    return Direct.model_validate_json(done.stdout.strip().splitlines()[-1])


def check_logprobs(endpoint: Endpoint, direct: Direct, tolerance: float = TOLERANCE_MEAN_NATS) -> LogprobCheck:
    """Compare an endpoint with transformers. Raises UserError where they differ by more than `tolerance` nats on the
    mean.
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
    )
    if check.mean_nats > tolerance:
        raise UserError(
            f"the log-probabilities of {endpoint.url} are not those of the model: over {check.tokens} tokens they "
            f"differ by {check.mean_nats:.4f} nats on the mean (at most {check.max_nats:.4f}) from transformers' "
            f"({check.direct}), more than {tolerance:g}; is it another model, or a quantised one "
            "(--logprob-tolerance)?"
        )
    return check


def measure(model: str, device_name: str | None) -> Direct:
    """Compute the log-probabilities of a dense model, a pruned checkpoint or a virtual one."""
    from mi_prun.checkpoint.manifest import MANIFEST_NAME, Manifest, is_pruned
    from mi_prun.model.loading import load_block_model, pick_device, pick_dtype
    from mi_prun.text.calibration import begins_with_bos

    manifest = Manifest.read(Path(model) / MANIFEST_NAME) if is_pruned(Path(model)) else None
    virtual = manifest is not None and manifest.weights == "virtual"
    folder = open_model(manifest.plan.dense.name if manifest and virtual else model)
    device = pick_device(device_name)
    dtype = pick_dtype(device)
    check_memory(folder, device, dtype)
    loaded = load_block_model(folder, device=device, dtype=dtype)
    tokenizer = folder.tokenizer
    first = [tokenizer.bos_token_id] if begins_with_bos(tokenizer) else []
    tokens = [(*first, *tokenizer(text, add_special_tokens=False)["input_ids"])[:MAX_TOKENS] for text in STRINGS]
    logprobs = []
    with loaded.without(manifest.plan.dropped if manifest and virtual else ()) as whole, torch.inference_mode():
        for row in tokens:
            ids = torch.tensor([row], device=device)
            scores = torch.log_softmax(whole(input_ids=ids, use_cache=False).logits[0, :-1].float(), dim=-1)
            said = scores.gather(-1, ids[0, 1:, None])[:, 0]
            if not said.isfinite().all():
                raise UserError(f"{folder.name} gives log-probabilities that are not finite numbers; is it damaged?")
            logprobs.append(tuple(said.tolist()))
    return Direct(
        computed=f"{str(dtype).removeprefix('torch.')}, {device.type}",
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
    )


def check_memory(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model that does not fit into the memory that is free, before it is read."""
    parameters = sum(math.prod(info.shape) for _, info in folder.tensors.values())
    need, free = parameters * dtype.itemsize, psutil.virtual_memory().available
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
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
