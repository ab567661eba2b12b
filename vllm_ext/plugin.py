"""What vLLM calls, in the API process, the engine core and each worker (entry point group `vllm.general_plugins`)."""

from __future__ import annotations

import os

SERVER_PID = "MI_PRUN_SERVER_PID"  # set by `mi-prun-serve` in its own environment, which its children inherit


def register() -> None:
    """Have a process that `mi-prun-serve` started end with it, kill -9 included.

    A materialised checkpoint needs nothing else of a plugin. Under plain `vllm serve` nothing is done at all.
    """
    parent = os.getppid()
    if os.environ.get(SERVER_PID) == str(parent):
        from mi_prun.process_group import die_with_parent

        die_with_parent(parent)
