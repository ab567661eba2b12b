"""vLLM's load format `mi_prun`: a pruned folder, virtual or materialised, and the dense model beside its draft.

A virtual folder is a config.json of the kept blocks with `"mi_prun": {"base": ..., "kept": [...], "weights":
"virtual"}`: the tensors come out of the dense model's files. In a pipeline each rank reads its own blocks only. A model
that is not ours is left to vLLM's own loader: a draft and its target share one load format.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
from vllm.model_executor.models.utils import PPMissingLayer, is_pp_missing_parameter

from mi_prun.architecture.architecture import Config, block_of, family_of
from mi_prun.checkpoint.healing import ADAPTER_NAME
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.checkpoint.manifest import ConfigEntry, read_config_entry
from mi_prun.errors import UserError
from mi_prun.model.hub import fetch
from mi_prun.model.model_folder import read_config, resolve
from mi_prun.recovery.adapter import Adapter, read_adapter
from vllm_ext import compat, draft, fault
from vllm_ext.base import check_unhealed_draft, checked_base
from vllm_ext.kept_weights import LoadProgress, kept_weights
from vllm_ext.names import LOAD_FORMAT

# vLLM's log handlers hang on the logger `vllm`.
logger = init_logger("vllm.mi_prun.loader")


@register_model_loader(LOAD_FORMAT)
class MiPrunLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's loader for the load format `mi_prun`. reading: what the last load read in this process."""

    def __init__(self, load_config: Any) -> None:
        # The parent knows its own formats only.
        super().__init__(dataclasses.replace(load_config, load_format="auto"))
        self.reading = LoadProgress()

    def download_model(self, model_config: Any) -> None:
        entry = entry_of(model_config)
        if entry is None or entry.weights == "materialized":
            super().download_model(model_config)
        else:
            resolve(entry.base, entry.kept)

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        entry = entry_of(model_config)
        if entry is not None and entry.weights == "virtual" and draft.is_draft(vllm_config, model_config):
            target = draft.target_of(entry.base)
            if target is not None:
                with fault_reported(f"draft {model_config.model}"):
                    draft.check_no_adapters(vllm_config)
                    folder = folder_of(model_config)
                    check_unhealed_draft(f"draft {folder}", read_manifest(folder))
                    checked_base(folder, entry)
                    return draft.shared_model(vllm_config, model_config, prefix, target, entry.kept)
            logger.warning("The draft is not of the served model %s: it gets weights of its own.", entry.base)
        model: nn.Module = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        if entry is None and draft.has_draft(vllm_config):
            compat.mend_cpu_sampling()
            draft.remember_target(model_config.model, model)
        return model

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Load the weights into `model`. A dense model comes here too, as the target of a draft."""
        self.reading = LoadProgress()
        self.counter_before_loading_weights = time.perf_counter()  # the parent logs how long it took from there
        with fault_reported(f"model {model_config.model}", self.reading):
            super().load_weights(model, model_config)
        if entry_of(model_config) is not None:
            logger.info("%s: %s", model_config.model, self.reading)

    def get_all_weights(self, model_config: Any, model: nn.Module) -> Generator[tuple[str, torch.Tensor], None, None]:
        entry = entry_of(model_config)
        if entry is None or (entry.weights == "materialized" and not Path(model_config.model).is_dir()):
            yield from super().get_all_weights(model_config, model)
            return
        virtual = entry.weights == "virtual"
        folder = checked_base(folder_of(model_config), entry) if virtual else Path(model_config.model)
        config = read_config(folder)
        missing = missing_blocks(model, len(entry.kept))
        yield from kept_weights(
            folder,
            config,
            entry.kept if virtual else None,
            self.reading,
            lambda name: not self._is_elsewhere(name, config, model, missing),
            mapped=not virtual and not missing,
            healed=adapter_of(folder_of(model_config)) if virtual else None,
        )
        for source in getattr(model, "secondary_weights", ()):
            yield from self._get_weights_iterator(source)

    def _is_elsewhere(self, name: str, config: Config, model: nn.Module, missing: set[int]) -> bool:
        """Tell whether a tensor belongs to another rank of the pipeline or of expert parallelism."""
        is_unused = getattr(model, "is_unused_checkpoint_weight", None)
        return (
            block_of(name, family_of(config)) in missing
            or is_pp_missing_parameter(name, model)
            or should_skip_weight(name, self.local_expert_ids)
            or (is_unused is not None and is_unused(name))
        )


def entry_of(model_config: Any) -> ConfigEntry | None:
    """Return the `mi_prun` entry of the config that vLLM read; None for a model that is not ours."""
    return read_config_entry(getattr(model_config.hf_config, "mi_prun", None), origin=str(model_config.model))


def adapter_of(virtual: Path) -> Adapter | None:
    """What healing learned, where a virtual folder holds it."""
    manifest = read_manifest(virtual)
    return None if manifest.healing is None else read_adapter(virtual / ADAPTER_NAME, manifest.plan)


def folder_of(model_config: Any) -> Path:
    """Return the folder with the config that vLLM read; of a hub id, its small files and what healing learned."""
    path = Path(model_config.model)
    return path if path.is_dir() else fetch(str(model_config.model), (ADAPTER_NAME,), revision=model_config.revision)


def missing_blocks(model: nn.Module, num_blocks: int) -> set[int]:
    """Return the blocks that other ranks of the pipeline have (0-based, of the pruned model)."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks:
            missing = {index for index, block in enumerate(module) if isinstance(block, PPMissingLayer)}
            if missing:
                return missing
    return set()


@contextlib.contextmanager
def fault_reported(what: str, reading: LoadProgress | None = None) -> Iterator[None]:
    """An error inside becomes one line for the server, and the end of this process; it goes on where there is none.

    The stack trace is logged at level DEBUG (VLLM_LOGGING_LEVEL).
    """
    try:
        yield
    except Exception as error:
        line = str(error)
        if not isinstance(error, UserError):
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            last = f"; the tensor read last was {reading.last}" if reading and reading.last else ""
            line = f"{what} does not fit its config: {first}{last}"
            if isinstance(error, torch.OutOfMemoryError):
                line = f"{what} does not fit into the device's memory: {first}"
        if not fault.report(line):
            raise
        logger.debug("%s", line, exc_info=True)
        raise SystemExit(1) from error
