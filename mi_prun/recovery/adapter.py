"""What healing learned, as a small file: the dense model, the plan and this are the healed model.

A safetensors file. `own/NAME` is a tensor of the student in place of the dense model's. `lora_A/NAME` (rank, in) and
`lora_B/NAME` (out, rank) are LoRA: the healed tensor is `W + scaling B A`, W the own tensor or the dense one.
NAME: the tensor's name in the dense model's files. The metadata names the dense model, the dropped blocks and the
scaling.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mi_prun.checkpoint.healing import Healed, Healing
from mi_prun.errors import UserError
from mi_prun.files import check_apart, new_file, scratch_folder
from mi_prun.model.model_folder import ModelFolder
from mi_prun.model.shard import read_shard
from mi_prun.plan.plan import Plan

FORMAT = "mi_prun adapter 1"
OWN, LORA_A, LORA_B = "own", "lora_A", "lora_B"


NOT_SAID = Healing(method="not said", text="", tokens=0, fit_tokens=0, seconds=0, seed=0)


@dataclass(frozen=True)
class Adapter:
    """Tensors by the dense model's names. transposed: names of the matrices that are kept (in, out), as GPT-2's.

    healing: how they were learned, in one that was read.
    """

    own: Mapping[str, Tensor]
    lora_a: Mapping[str, Tensor]
    lora_b: Mapping[str, Tensor]
    scaling: float = 1.0
    transposed: tuple[str, ...] = ()
    healing: Healing = NOT_SAID

    @property
    def names(self) -> set[str]:
        """The tensors that healing changed."""
        return {*self.own, *self.lora_a}

    def merged(self, name: str, dense: Tensor) -> Tensor:
        """The healed tensor of that name, in the dense one's dtype; the dense one where nothing changed it."""
        tensor = self.own.get(name, dense)
        if name in self.lora_a:
            change = (self.lora_b[name].float() @ self.lora_a[name].float()) * self.scaling
            tensor = tensor.float() + (change.T if name in self.transposed else change).to(tensor.device)
        return tensor.to(dense.dtype)


def write_adapter(path: Path, adapter: Adapter, plan: Plan, healing: Healing) -> None:
    """Write an adapter file atomically."""
    tensors = {f"{OWN}/{name}": tensor for name, tensor in adapter.own.items()}
    tensors |= {f"{LORA_A}/{name}": tensor for name, tensor in adapter.lora_a.items()}
    tensors |= {f"{LORA_B}/{name}": tensor for name, tensor in adapter.lora_b.items()}
    metadata = {
        "format": FORMAT,
        "dense_weights_sha256": plan.dense.weights_sha256,
        "dropped": json.dumps(plan.dropped),
        "scaling": json.dumps(adapter.scaling),
        "transposed": json.dumps(adapter.transposed),
        "healing": healing.model_dump_json(),
    }
    with new_file(path) as partial:
        write_tensors(partial, tensors, path, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], out: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors into a safetensors file. out: what they are for, to be named where the disk is full."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # its words for a full disk
        raise UserError(f"cannot write {out}: {error}; nothing was left behind") from error


def healed_by(path: Path, adapter: Adapter, dense: ModelFolder) -> Healed:
    """Return what a virtual folder takes of the adapter that was read from `path`. It must fit the dense model."""
    check_fits(path, adapter, dense)
    return Healed(adapter.healing, adapter=path)


@contextlib.contextmanager
def merged_by(path: Path, adapter: Adapter, plan: Plan, dense: ModelFolder, out: Path) -> Iterator[Healed]:
    """Yield what a whole folder `out` takes of the adapter that was read from `path`: the healed tensors, in a file
    that goes with the block.
    """
    check_apart(dense.path, out)
    plan.check_belongs_to(dense.identity)
    check_fits(path, adapter, dense)
    with scratch_folder(out) as folder:
        file = folder / "healed.safetensors"
        write_tensors(file, {name: adapter.merged(name, dense_tensor(dense, name)) for name in adapter.names}, out)
        yield Healed(adapter.healing, read_shard(file))


def check_fits(path: Path, adapter: Adapter, dense: ModelFolder) -> None:
    """Refuse an adapter file with a tensor that the dense model has not, or has in another shape."""
    for name in sorted(adapter.names):
        if name not in dense.tensors:
            raise UserError(f"adapter {path} changes {name}, which {dense.path} has not")
        there = tuple(dense.tensors[name][1].shape)
        shapes = [tuple(adapter.own[name].shape)] if name in adapter.own else []
        if name in adapter.lora_a:
            a, b = adapter.lora_a[name].shape, adapter.lora_b[name].shape
            if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
                raise UserError(f"adapter {path}: lora_A {tuple(a)} and lora_B {tuple(b)} of {name} do not go together")
            shapes.append((a[1], b[0]) if name in adapter.transposed else (b[0], a[1]))
        for shape in shapes:
            if shape != there:
                raise UserError(f"adapter {path} has {name} as {shape}, and {dense.path} has it as {there}")


def dense_tensor(dense: ModelFolder, name: str) -> Tensor:
    """A tensor out of the dense model's files."""
    with safe_open(dense.tensors[name][0], framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def read_adapter(path: Path, plan: Plan) -> Adapter:
    """Read an adapter file. Raises UserError where it is none, or belongs to another model or plan."""
    if not path.is_file():
        raise UserError(f"adapter {path}: no such file")
    groups: dict[str, dict[str, Tensor]] = {OWN: {}, LORA_A: {}, LORA_B: {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is not an adapter of `mi-prun heal --adapter`")
            if metadata["dense_weights_sha256"] != plan.dense.weights_sha256:
                raise UserError(f"adapter {path} was made for another dense model than the plan's {plan.dense.name}")
            if tuple(json.loads(metadata["dropped"])) != plan.dropped:
                raise UserError(
                    f"adapter {path} heals a model without blocks {metadata['dropped']}, and the plan drops "
                    f"{list(plan.dropped)}"
                )
            for name in file.keys():  # noqa: SIM118 - not a dict
                group, _, rest = name.partition("/")
                groups[group][rest] = file.get_tensor(name)
            healing = Healing.model_validate_json(metadata["healing"])
            scaling, transposed = float(json.loads(metadata["scaling"])), tuple(json.loads(metadata["transposed"]))
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"adapter {path} cannot be read: {error}") from error
    if groups[LORA_A].keys() != groups[LORA_B].keys():
        raise UserError(f"adapter {path} is not whole: each lora_A needs its lora_B")
    return Adapter(groups[OWN], groups[LORA_A], groups[LORA_B], scaling, transposed, healing)
