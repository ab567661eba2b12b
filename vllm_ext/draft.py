"""The pruned model as the draft of the dense one it came from, on the dense one's own weights.

The draft is built on the meta device, so that there is no second copy of the weights, not even for a moment; then each
of its modules is replaced by the target's, but for those that own a KV cache (or a recurrent state): these are the
draft's own, with the target's scales. What is left on the meta device at the end is a fault, not a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from vllm.logger import init_logger
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from mi_prun.errors import UserError
from mi_prun.model.model_folder import resolve
from vllm_ext.names import NO_ADAPTERS

logger = init_logger("vllm.mi_prun.draft")

_targets: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()


def remember_target(reference: str, model: nn.Module) -> None:
    """Remember a dense model that this process loaded; a draft of it may follow. It is not kept alive by this."""
    _targets[_key(reference)] = model


def target_of(base: str) -> nn.Module | None:
    """Return the dense model named `base`, if this process has loaded it."""
    return _targets.get(_key(base))


def _key(reference: str) -> str:
    """The folder: where the hub is out of reach, vLLM puts a hub id's folder in the place of the id."""
    try:
        return str(resolve(reference).resolve())
    except UserError:
        return reference


def has_draft(vllm_config: Any) -> bool:
    """Tell whether one model drafts for another in this engine."""
    speculative = vllm_config.speculative_config
    return speculative is not None and speculative.method == "draft_model"


def check_no_adapters(vllm_config: Any) -> None:
    """Refuse LoRA adapters beside a draft on the dense model's own weights.

    vLLM has by then put its adapters' layers into the dense model. In the draft they would meet other tokens than those
    they were set up for: the first request would end the engine (seen in 0.32).
    """
    if vllm_config.lora_config is not None:
        raise UserError(NO_ADAPTERS)


def is_draft(vllm_config: Any, model_config: Any) -> bool:
    """Tell whether the model is loaded as the draft of another."""
    return has_draft(vllm_config) and bool(
        vllm_config.speculative_config.draft_model_config.model == model_config.model
    )


def shared_model(vllm_config: Any, model_config: Any, prefix: str, target: nn.Module, kept: Sequence[int]) -> nn.Module:
    """Return the draft that has the blocks `kept` of `target` (0-based), without weights of its own.

    prefix: of the names that its attention layers have in vLLM's forward context.
    """
    with set_default_torch_dtype(model_config.dtype), torch.device("meta"):
        model: nn.Module = initialize_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
    share(model, target, kept)
    own = sum(tensor.nbytes for tensor in own_tensors(model, target))
    logger.info("The draft has %d blocks of the served model, and %d bytes of its own.", len(kept), own)
    return model.eval()


def own_tensors(model: nn.Module, target: nn.Module) -> Iterator[torch.Tensor]:
    """Return the parameters and buffers of `model` whose memory is not the target's."""
    shared = {tensor.data_ptr() for tensor in chain(target.parameters(), target.buffers())}
    return (tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.data_ptr() not in shared)


def share(model: nn.Module, target: nn.Module, kept: Sequence[int]) -> None:
    """Give `model`, which has the blocks `kept` of `target`, the target's modules; block i gets those of kept[i].

    Raises UserError where the two are not built alike.
    """
    blocks = _blocks(model, target, kept)
    _adopt(model, target, "", blocks, [str(block) for block in kept])
    left = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    if left:
        raise UserError(f"the draft cannot share the weights of the served model: {left[0]} has no counterpart there")


def _blocks(model: nn.Module, target: nn.Module, kept: Sequence[int]) -> str:
    """The path of the list of blocks: as long as `kept` in the one, longer in the other."""
    lists: dict[str, int] = {
        path: len(module) for path, module in target.named_modules() if isinstance(module, nn.ModuleList)
    }
    lists_of_blocks: list[str] = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == len(kept) and lists.get(path, 0) > max(kept)
    ]
    if not lists_of_blocks:
        raise UserError(f"the draft cannot share the weights of the served model: no list of {len(kept)} blocks found")
    # Of a tower beside the text model nothing is dropped; experts are a list inside a block, and come later.
    return next((path for path in lists_of_blocks if lists[path] > len(kept)), lists_of_blocks[0])


def _adopt(model: nn.Module, target: nn.Module, path: str, blocks: str, kept: Sequence[str]) -> None:
    if type(model) is not type(target):
        raise UserError(
            f"the draft cannot share the weights of the served model: {path or 'the model'} is a "
            f"{type(model).__name__} there and a {type(target).__name__} here"
        )
    modules = list(model._modules.items())  # named_children would leave out a second name of a tied module
    for name, child in modules:
        theirs = target._modules.get(kept[int(name)] if path == blocks else name)
        if child is None or theirs is None:
            model._modules[name] = theirs
        elif any(isinstance(module, AttentionLayerBase) for module in child.modules()):
            _adopt(child, theirs, f"{path}.{name}" if path else name, blocks, kept)
        else:
            model._modules[name] = theirs
    # The target's parameters are as processed after loading: some may be gone, others new.
    model._parameters.clear()
    model._parameters.update(target._parameters)
    owns_cache = isinstance(model, AttentionLayerBase)
    for name, buffer in target._buffers.items():
        model._buffers[name] = buffer.clone() if owns_cache and buffer is not None else buffer
    _fill(model, target)
    if owns_cache and hasattr(model, "impl"):
        _fill(model.impl, target.impl)
        for name, value in vars(target.impl).items():  # of a latent attention: a layer that belongs to the block
            if isinstance(value, nn.Module) and not any(isinstance(m, AttentionLayerBase) for m in value.modules()):
                vars(model.impl)[name] = value


def _fill(model: object, target: object) -> None:
    """Plain attributes: tensors that came out on the meta device or that processing after the load adds, and scales."""
    mine = vars(model)
    for name, value in vars(target).items():
        if isinstance(value, float) and name.endswith("_float"):
            mine[name] = value
        elif not isinstance(value, torch.Tensor):
            continue
        elif name == "kv_cache":
            mine[name] = torch.empty(0, dtype=value.dtype, device=value.device)
        elif name not in mine or (isinstance(mine[name], torch.Tensor) and mine[name].is_meta):
            mine[name] = value
