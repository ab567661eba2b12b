"""What vLLM calls, in the API process, the engine core and each worker (entry point group `vllm.general_plugins`)."""

from __future__ import annotations


def register() -> None:
    """Nothing to register yet: a materialised checkpoint needs no plugin."""
