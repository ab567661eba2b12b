"""LoRA adapters that are loaded into an engine: on a pruned model those of the dense one are renumbered first.

It is done where a worker reads an adapter's folder. All ways lead there: `--lora-modules`, `/v1/load_lora_adapter`,
vLLM's resolvers, and an adapter that was pushed out of memory and is wanted again. An engine that `vllm serve` started
does it too, as the plugin is in each of vLLM's processes.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from vllm.logger import init_logger

from mi_prun.errors import UserError
from vllm_ext import compat
from vllm_ext.adapters import PrunedModel, check_for_dense, open_pruned, renumbering, write_renumbered
from vllm_ext.loader import entry_of, folder_of

logger = init_logger("vllm.mi_prun.adapters")

MODEL = "_mi_prun_model"  # where a manager keeps the pruned model that it serves


def renumber_adapters() -> None:
    """Have vLLM's workers renumber adapters. May be called any number of times.

    Raises UserError where vLLM does not read them as this release knows it.
    """
    manager: Any = compat.lora_manager_class()
    load = manager._load_adapter
    if hasattr(load, "__wrapped__"):
        return
    init = manager.__init__

    @functools.wraps(init)
    def init_with_model(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        init(self, vllm_config, *args, **kwargs)
        setattr(self, MODEL, pruned_model(vllm_config.model_config))

    @functools.wraps(load)
    def load_renumbered(self: Any, lora_request: Any) -> Any:
        model: PrunedModel | None = getattr(self, MODEL)
        if model is None:
            if (of_dense := compat.adapter_folder(lora_request.lora_path)).is_dir():
                check_for_dense(of_dense)
            return load(self, lora_request)
        if getattr(lora_request, "tensorizer_config_dict", None):
            raise UserError(
                f"adapter {lora_request.lora_name} is tensorized; on a pruned model only safetensors are read"
            )
        adapter = compat.adapter_folder(lora_request.lora_path)
        if not adapter.is_dir():
            return load(self, lora_request)  # vLLM says so in its own words
        change = renumbering(adapter, model)
        if change is None:
            return load(self, lora_request)
        with tempfile.TemporaryDirectory(prefix="mi-prun-adapter-") as folder:
            write_renumbered(adapter, change, Path(folder))
            lora = load(self, replace(lora_request, lora_path=folder))
        logger.info("adapter %s: %s", lora_request.lora_name, change)
        return lora

    manager.__init__ = init_with_model
    manager._load_adapter = load_renumbered


def pruned_model(model_config: Any) -> PrunedModel | None:
    """Return the pruned model that vLLM serves; None where it is not one."""
    if entry_of(model_config) is None:
        return None
    return open_pruned(folder_of(model_config))
