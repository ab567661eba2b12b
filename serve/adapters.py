"""The adapters of `--lora-modules`, checked before an engine is started. The engine's workers renumber them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError
from serve.served_model import ServedModel
from vllm_ext import compat
from vllm_ext.adapters import check_for_dense, open_pruned, renumbering
from vllm_ext.names import NO_ADAPTERS


def check_adapters(served: ServedModel, args: Any) -> None:
    """Refuse adapters that cannot be put on the served model; say on stderr which are renumbered.

    args: vLLM's parsed flags. Of a dense model only two things are refused: a draft beside adapters, and an adapter
    that was trained on a pruned model.
    """
    if served.draft and getattr(args, "enable_lora", False):
        raise UserError(NO_ADAPTERS)
    modules = getattr(args, "lora_modules", None) or []
    model = open_pruned(Path(served.folder)) if served.manifest else None
    if model is not None and (modules or getattr(args, "enable_lora", False)):
        compat.lora_manager_class()
    for module in modules:
        if model is None and not Path(module.path).is_dir():
            continue  # of the hub; vLLM fetches it
        folder = compat.adapter_folder(module.path)
        if not folder.is_dir():
            raise UserError(f"--lora-modules {module.name}: no such folder, and the hub did not give it: {module.path}")
        if model is None:
            check_for_dense(folder)
        elif (change := renumbering(folder, model)) is not None:
            print(f"adapter {module.name}: {change}", file=sys.stderr)
