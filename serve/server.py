"""vLLM's own OpenAI server, with one route more: `GET /v1/pruning`."""

from __future__ import annotations

import os
import socket
from typing import Any

from mi_prun.errors import UserError
from serve.served_model import ServedModel
from vllm_ext.plugin import SERVER_PID

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
HOST = "127.0.0.1"
PORT = 8000
CPU_KV_CACHE_GIB = "2"


def quiet_environment() -> None:
    """No usage reports; on CPU a KV cache that leaves room for the weights. What the user set stays."""
    for name, value in {**QUIET, "VLLM_CPU_KVCACHE_SPACE": CPU_KV_CACHE_GIB}.items():
        os.environ.setdefault(name, value)


def check_port(host: str, port: int) -> None:
    """Refuse a port in use now, not after the engine's half minute of starting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


def parse_arguments(arguments: list[str]) -> Any:
    """vLLM's own flags; its parser prints usage and exits with status 2 on a wrong one."""
    from vllm_ext import compat

    module = compat.arguments_module()
    parser = module.make_arg_parser(compat.parser_class()(prog="mi-prun-serve"))
    args = parser.parse_args(arguments)
    module.validate_parsed_serve_args(args)
    return args


def run(served: ServedModel, arguments: list[str]) -> None:
    """Serve until SIGTERM or Ctrl-C. `arguments` are vLLM's, --model, --host and --port among them."""
    quiet_environment()
    os.environ[SERVER_PID] = str(os.getpid())
    import uvloop

    from vllm_ext import compat

    module = compat.server_module()
    build_app = module.build_app

    def with_pruning(*args: Any, **kwargs: Any) -> Any:
        app = build_app(*args, **kwargs)
        app.include_router(pruning_router(served))
        return app

    args = parse_arguments(arguments)
    setattr(module, "build_app", with_pruning)  # noqa: B010 - what run_server looks up when it builds the app
    uvloop.run(module.run_server(args))


def pruning_router(served: ServedModel) -> Any:
    """Under /v1, so that vLLM's --api-key guards it like the rest."""
    from fastapi import APIRouter

    router = APIRouter()

    @router.get("/v1/pruning")
    async def pruning() -> dict[str, Any]:
        return served.describe()

    return router
