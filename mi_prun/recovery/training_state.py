"""The state of a training, in one file: a killed healing goes on from it. On a CPU, and for a number of tokens, it
then gives what it would have given, bit for bit.

A safetensors file: the student's own tensors, adapters, the optimizer's moments, the best state so far; the numbers are
JSON in its metadata. It takes the place of the one before in one step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mi_prun.errors import UserError
from mi_prun.files import new_file, remove_abandoned_files

MUCH_WORSE = 1.25  # times the loss before the first step
OWN, TRAINED, BEST, MOMENTS = "own", "trained", "best", "optimizer"


@dataclass(frozen=True)
class Progress:
    """How far a training has come.

    tokens: trained on so far; the next window is the one after them. seconds: of work, over all starts.
    fit_tokens: that the closed form saw before it. checks_nats: the loss on validation text, before the first step and
    at each check since. held_out_sha256: of the windows that were held out.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    fit_tokens: int = 0
    checks_nats: tuple[float, ...] = ()
    held_out_sha256: str = ""

    def after(self, tokens: int, seconds: float) -> Progress:
        return replace(self, step=self.step + 1, tokens=self.tokens + tokens, seconds=seconds)

    @property
    def stopped(self) -> bool:
        """Whether the last check is much worse than the state before the first step: the training goes wrong.

        A little worse it may be early, while the rate is high, and better at the end.
        """
        return len(self.checks_nats) > 1 and self.checks_nats[-1] > MUCH_WORSE * self.checks_nats[0]

    @property
    def helped(self) -> bool:
        """Whether a check was better than the state before the first step."""
        return min(self.checks_nats[1:], default=math.inf) < self.checks_nats[0]


def state_path(out: Path) -> Path:
    """Where the state of a healing that writes `out` lies."""
    return out.absolute().parent / f".{out.name}.healing.safetensors"


def save_state(path: Path, fingerprint: str, progress: Progress, groups: Mapping[str, dict[str, Tensor]]) -> None:
    """Write the state atomically. groups: tensors by OWN, TRAINED, BEST and MOMENTS."""
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    metadata = {"fingerprint": fingerprint, "progress": json.dumps(asdict(progress))}
    with new_file(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:  # its words for a full disk
            raise UserError(f"cannot write {path}: {error}; a state saved before is still there") from error


@dataclass(frozen=True)
class SavedState:
    """What `save_state` wrote."""

    progress: Progress
    groups: dict[str, dict[str, Tensor]]


def load_state(path: Path, fingerprint: str) -> SavedState | None:
    """The state that lies at `path`; None where there is none. Raises UserError where it is of another healing."""
    remove_abandoned_files(path)
    if not path.is_file():
        return None
    groups: dict[str, dict[str, Tensor]] = {OWN: {}, TRAINED: {}, BEST: {}, MOMENTS: {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                raise UserError(
                    f"{path} is the state of an interrupted healing with other settings, text or model; remove it, or "
                    "give --force to begin anew"
                )
            for name in file.keys():  # noqa: SIM118 - not a dict
                group, _, rest = name.partition("/")
                groups[group][rest] = file.get_tensor(name)
            said = json.loads(metadata["progress"])
            if "checks_nats" not in said:
                raise UserError(
                    f"{path} is the state of a healing by another release; remove it, or give --force to begin anew"
                )
            progress = Progress(**{**said, "checks_nats": tuple(said["checks_nats"])})
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it to begin anew") from error
    return SavedState(progress, groups)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's moments by the name of their parameter."""
    return {
        f"{names[cast('nn.Parameter', parameter)]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer the moments that `optimizer_tensors` had of it."""
    by_name = {name: parameter for parameter, name in names.items()}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        parameter = by_name[name]
        optimizer.state[parameter][key] = value.to(parameter.device)
