"""The functions that vLLM calls in each of its processes (entry point group `vllm.general_plugins`)."""

from __future__ import annotations

import os
import sys

from vllm_ext.names import SERVER_PID


def register() -> None:
    """Add the load format `mi_prun`, and have adapters renumbered on pruned models.

    A process that `mi-prun-serve` started then ends with it, kill -9 included.
    May be called any number of times. Where vLLM has not been imported it imports nothing.
    """
    parent = os.getppid()
    if os.environ.get(SERVER_PID) == str(parent):
        from mi_prun.process_group import die_with_parent

        die_with_parent(parent)
    if "vllm" in sys.modules:  # else whoever calls is no process of an engine
        register_loader()


def register_loader() -> None:
    """Register the load format, and have adapters renumbered on pruned models.

    A vLLM that this release was not written for keeps its own ways; one line says so.
    """
    from mi_prun.errors import UserError
    from vllm_ext.compat import check_version

    try:
        check_version()
    except UserError as error:
        print(f"mi-prun: {error}; load format mi_prun is not available", file=sys.stderr)
        return
    import vllm_ext.loader  # noqa: F401 - registers itself, once
    from vllm_ext.adapter_loading import renumber_adapters

    try:
        renumber_adapters()
    except UserError as error:
        print(f"mi-prun: {error}", file=sys.stderr)
