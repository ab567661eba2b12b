"""Teacher and student in one set of weights.

The pruned model is a part of the dense one. The teacher runs all blocks. The student runs the kept blocks, with weights
of its own in place of some of the shared ones, and with adapters. Embeddings, head, norms and every block that is not
trained exist once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.plan.plan import kept_blocks
from mi_prun.recovery.adapter import Adapter
from mi_prun.recovery.sharding import is_shared, overwrite, shard_blocks

ADAPTER = "default"  # peft's own name for the first adapter


@dataclass
class OwnWeight:
    """A tensor that the student has for itself, and the place of the shared one."""

    module: nn.Module
    leaf: str
    shared: nn.Parameter
    own: nn.Parameter


def check_peft() -> None:
    """Refuse LoRA where peft cannot be imported."""
    try:
        import peft  # noqa: F401 - one that is there may still be of no use
    except ImportError as error:
        raise UserError(
            "LoRA needs peft: in a clone of the repository run pip install '.[heal]'; or take --train all, or --fit"
        ) from error


class SharedWeights:
    """A dense model as teacher, and as student what the plan keeps of it. Block indices are the dense model's, 0-based.

    As it stands, and outside `student()`, the model is the teacher. `first`: the first block that may be trained, the
    one in front of the first dropped block; what stands before it is the same in both and runs once.
    """

    def __init__(self, model: BlockModel, dropped: Sequence[int], prefix: str) -> None:
        if not dropped:
            raise UserError("the plan drops no block: there is nothing to heal")
        self.model, self.dropped, self.prefix = model, tuple(dropped), prefix
        self.kept = kept_blocks(model.num_blocks, dropped)
        self.first = max(0, min(dropped) - 1)
        self._shape: torch.Size | None = None  # (batch, tokens) last embedded
        self.own: dict[str, OwnWeight] = {}
        self.adapters: dict[str, Any] = {}  # peft's layers by the name of the weight that they adapt
        for parameter in model.model.parameters():
            parameter.requires_grad_(False)
        self._homes = {
            f"{prefix}.{block}.{name}": (module, leaf)
            for block in self.kept
            for path, module in model.blocks[block].named_modules()
            for leaf, _ in module.named_parameters(recurse=False)
            for name in [f"{path}.{leaf}" if path else leaf]
        }

    @property
    def trained_blocks(self) -> tuple[int, ...]:
        """The kept blocks that may be trained."""
        return tuple(block for block in self.kept if block >= self.first)

    def names(self, blocks: Sequence[int]) -> list[str]:
        """Names of the parameters of `blocks`, as the dense model has them."""
        return [name for name in self._homes if any(name.startswith(f"{self.prefix}.{block}.") for block in blocks)]

    def shared(self, name: str) -> nn.Parameter:
        """The teacher's tensor of a kept block."""
        if name in self.own:
            return self.own[name].shared
        module, leaf = self._homes[name]
        return cast("nn.Parameter", module._parameters[leaf])

    def module(self, name: str) -> nn.Module:
        """The module that holds a tensor of a kept block."""
        module: nn.Module = self._homes[name][0]
        return module

    def current(self, name: str) -> nn.Parameter:
        """The student's tensor of a kept block, adapters left out."""
        return self.own[name].own if name in self.own else self.shared(name)

    def give(self, name: str, value: Tensor, *, trained: bool = False) -> nn.Parameter:
        """Let the student have `value` in place of a shared tensor."""
        module, leaf = self._homes[name]
        own = nn.Parameter(value, requires_grad=trained)
        self.own[name] = OwnWeight(module, leaf, self.shared(name), own)
        return own

    def shard(self, device: torch.device, left_whole: Sequence[str]) -> None:
        """Leave this process a share of each block, and move the model to `device`.

        left_whole: tensors that the student may get its own of before it is settled.
        """
        shard_blocks(self.model, device, [self.shared(name) for name in left_whole])

    def give_all(self, dtype: torch.dtype) -> None:
        """Let the student have copies of the blocks that may be trained, to be trained whole."""
        for name in self.names(self.trained_blocks):
            self.give(name, self.current(name).detach().to(dtype, copy=True), trained=True)

    def adapt(self, rank: int, alpha: float, seed: int) -> None:
        """Put LoRA on every linear layer of the blocks that may be trained. Raises UserError as `adaptable` does."""
        targets = self.adaptable(rank)
        from peft import LoraConfig, inject_adapter_in_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
            inject_adapter_in_model(config, cast("Any", self.model.model))
        for path, name in targets.items():
            layer = self.model.model.get_submodule(path)
            for parameter in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):  # type: ignore[union-attr]
                parameter.data = parameter.data.float()
            self.adapters[name] = layer
        self._enable(False)

    def adaptable(self, rank: int) -> dict[str, str]:
        """Return each linear layer that LoRA goes on: its path in the model -> the name of its weight.

        Raises UserError without peft, where there is no such layer, or where the rank does not fit a matrix.
        """
        check_peft()
        from transformers.pytorch_utils import Conv1D

        targets: dict[str, str] = {}
        paths = {id(module): path for path, module in self.model.model.named_modules()}
        for name in self.names(self.trained_blocks):
            module, leaf = self._homes[name]
            if leaf != "weight" or not isinstance(module, (nn.Linear, Conv1D)):
                continue
            if rank > min(module.weight.shape):
                raise UserError(
                    f"--rank {rank} is larger than a matrix of the model: {name} is "
                    f"{' x '.join(map(str, module.weight.shape))}; take a smaller one"
                )
            targets[paths[id(module)]] = name
        if not targets:
            raise UserError("no linear layer is left to put adapters on; take --train all")
        return targets

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The tensors that are trained, by name; adapters are named after the weight that they adapt.

        Their order is the model's, whatever was given first: the norm of all gradients is summed in it.
        """
        own = {name: self.own[name].own for name in self._homes if name in self.own}
        parameters = {name: tensor for name, tensor in own.items() if tensor.requires_grad}
        for name, layer in self.adapters.items():
            parameters[f"{name}.lora_A"] = layer.lora_A[ADAPTER].weight
            parameters[f"{name}.lora_B"] = layer.lora_B[ADAPTER].weight
        return parameters

    @contextlib.contextmanager
    def student(self) -> Iterator[None]:
        """Inside it, blocks run with the student's weights and adapters.

        What is trained is float32; of a model in fewer bits it is rounded as it is used.
        """
        try:
            for own in self.own.values():
                own.module._parameters[own.leaf] = own.own
            self._enable(True)
            if self.model.dtype == torch.float32:
                yield
            else:
                with torch.autocast(self.model.device.type, self.model.dtype):
                    yield
        finally:
            self._enable(False)
            for own in self.own.values():
                own.module._parameters[own.leaf] = own.shared

    @contextlib.contextmanager
    def narrowed(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside it, linear layers hold what is not trained in `dtype`, where that loses nothing.

        Products in `dtype` round their operands each time they are used. A quarter of a step's time went there. The
        embedding stays as it is, and what is added to a state with it: a head that is tied to it gets a copy.
        """
        model: Any = self.model.model
        embedding = model.get_input_embeddings().weight
        wide: list[tuple[Tensor, torch.dtype]] = []
        tied: list[nn.Module] = []
        for module in model.modules():
            weight = module.weight if isinstance(module, nn.Linear) else None
            if weight is None or weight.requires_grad or weight.dtype.itemsize <= dtype.itemsize or is_shared(weight):
                continue
            narrow = weight.detach().to(dtype)
            if not torch.equal(narrow.to(weight.dtype), weight):
                continue
            if weight is embedding:
                module._parameters["weight"] = nn.Parameter(narrow, requires_grad=False)
                tied.append(module)
            else:
                wide.append((weight, weight.dtype))
                weight.data = narrow
        try:
            yield
        finally:
            for module in tied:
                module._parameters["weight"] = embedding
            for weight, was in wide:
                weight.data = weight.detach().to(was)

    def _enable(self, enabled: bool) -> None:
        for layer in self.adapters.values():
            layer._disable_adapters = not enabled

    def embed(self, tokens: Tensor) -> Tensor:
        """Boundary state 0 of `tokens` (batch, tokens)."""
        self._shape = tokens.shape
        return self.model.embed(tokens)

    def run(self, state: Tensor, blocks: Sequence[int]) -> Tensor:
        """Run `blocks` in order, as teacher or student, whichever stands. state: (batch, tokens, d)."""
        if state.shape[:2] != self._shape:  # what else a block is called with depends on the shape alone
            with torch.no_grad():
                self.embed(torch.zeros(state.shape[:2], dtype=torch.long))
        for block in blocks:
            state = self.model.run(block, state)
        return state

    @torch.no_grad()
    def learned(self, file_names: Mapping[str, str], dtypes: Mapping[str, torch.dtype]) -> Adapter:
        """What the student has of its own and otherwise than the teacher: under the names that the dense model's files
        have, in the dtypes there.
        """

        def stored(name: str, tensor: Tensor) -> Tensor:
            return tensor.detach().to("cpu", dtypes[name]).contiguous()  # where the adapter is merged by `apply` too

        lora = [(name, layer) for name, layer in self.adapters.items() if layer.lora_B[ADAPTER].weight.any()]
        tensors = {}
        for name, own in self.own.items():  # no second copy of them all
            ours = stored(name, own.own)
            if not torch.equal(ours, stored(name, own.shared)):
                tensors[file_names[name]] = ours
        return Adapter(
            tensors,
            {file_names[name]: stored(name, layer.lora_A[ADAPTER].weight) for name, layer in lora},
            {file_names[name]: stored(name, layer.lora_B[ADAPTER].weight) for name, layer in lora},
            scaling=lora[0][1].scaling[ADAPTER] if lora else 1.0,
            transposed=tuple(file_names[name] for name, layer in lora if layer.fan_in_fan_out),
        )

    @torch.no_grad()
    def settle(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Let the model have `tensors`, by name, and no adapters: what a written folder will be.

        The teacher is gone after it, so there is no second copy of them on the device.
        """
        for name, tensor in tensors:
            shared = self.shared(name)
            self.own.pop(name, None)
            if is_shared(shared):
                overwrite(shared, tensor)
            else:
                module, leaf = self._homes[name]
                module._parameters[leaf] = nn.Parameter(tensor.to(shared), requires_grad=False)
        self._enable(False)
        self.adapters = {}
