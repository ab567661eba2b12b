"""vLLM's own OpenAI server, with one route more: `GET /v1/pruning`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mi_prun.console import say
from mi_prun.errors import UserError, first_line
from serve.adapters import check_adapters
from serve.served_model import ServedModel
from vllm_ext.names import LOAD_FORMAT, SERVER_PID

# The last: after workers that ended at once it would say behind our line what it cleans up.
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"}
# As vLLM's own commands start an engine. A forked one would not end with the server, and keep its port.
SPAWN = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
PLUGIN = "mi_prun"
HOST = "127.0.0.1"
PORT = 8000
CPU_KV_CACHE_GIB = "2"


def quiet_environment() -> None:
    """Turn usage reports off; on a CPU take a KV cache that leaves room for the weights. What the user set stays."""
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):  # vLLM then loads what it names, and nothing else
        os.environ["VLLM_PLUGINS"] = f"{plugins},{PLUGIN}".lstrip(",")
    for name, value in {**QUIET, **SPAWN, "VLLM_CPU_KVCACHE_SPACE": CPU_KV_CACHE_GIB}.items():
        os.environ.setdefault(name, value)


def check_port(host: str, port: int) -> None:
    """Refuse a port in use now, not after the engine's half minute of starting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise UserError(
                f"--host {host!r}: {error.strerror}; name an address of this machine, like 127.0.0.1"
            ) from error
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
        except (TypeError, UnicodeError) as error:
            raise UserError(f"--host {host!r} is no address: {first_line(error)}") from error


def parse_arguments(arguments: list[str]) -> Any:
    """vLLM's own flags; its parser prints usage and exits with status 2 on a wrong one.

    Raises ValueError or TypeError for flags that do not go together.
    """
    from vllm_ext import compat

    module = compat.arguments_module()
    parser = module.make_arg_parser(compat.parser_class()(prog="mi-prun-serve"))
    args = parser.parse_args(arguments)
    module.validate_parsed_serve_args(args)
    return args


def run(served: ServedModel, arguments: list[str], scratch: Path) -> None:
    """Serve until SIGTERM or Ctrl-C. `arguments` are vLLM's, --model, --host and --port among them.

    Raises UserError with what the engine's processes found wrong with a model of ours, or vLLM with its flags.
    """
    quiet_environment()
    os.environ[SERVER_PID] = str(os.getpid())
    import uvloop

    from vllm_ext import compat, fault

    module = compat.server_module()
    build_app = module.build_app
    built = False

    def with_pruning(*args: Any, **kwargs: Any) -> Any:
        nonlocal built
        built = True
        app = build_app(*args, **kwargs)
        app.include_router(pruning_router(served))
        return app

    fault_file = scratch / "fault"
    os.environ[fault.FAULT_FILE] = str(fault_file)
    try:
        args = parse_arguments(arguments)
        choose(served, args)
        check_adapters(served, args)
        say_slow(args)
        setattr(module, "build_app", with_pruning)  # noqa: B010 - what run_server looks up when it builds the app
        uvloop.run(module.run_server(args))
    except Exception as error:
        if said := fault.reported(fault_file):
            raise UserError(said) from error
        of_the_hub = isinstance(error, OSError) and error.errno is None  # transformers' word for what it could not get
        if (isinstance(error, ValueError | TypeError) or of_the_hub) and not built:
            raise refused_by_vllm(error) from error
        raise


def refused_by_vllm(error: Exception) -> UserError:
    """Say in one line what vLLM finds wrong with its flags or with the configuration that it makes of them.

    The stack trace is logged at level DEBUG (VLLM_LOGGING_LEVEL).
    """
    from vllm.logger import init_logger

    said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    init_logger("vllm.mi_prun.server").debug("%s", said, exc_info=error)
    return UserError(f"vLLM: {said.removeprefix('Value error, ').removeprefix('Error: ') or type(error).__name__}")


def choose(served: ServedModel, args: Any) -> None:
    """Set in vLLM's parsed flags what a model of ours needs; refuse what contradicts it, or what is not done here."""
    if getattr(args, "headless", False) or getattr(args, "api_server_count", None) not in (None, 1):
        raise UserError("--headless and --api-server-count are not supported: mi-prun-serve is one API server")
    for flag in ("grpc", "data_parallel_multi_port_external_lb"):  # read by `vllm serve` itself
        if getattr(args, flag, False):
            raise UserError(f"--{flag.replace('_', '-')} is not supported: mi-prun-serve is one API server, of HTTP")
    if (served.manifest or served.draft) and args.hf_overrides:
        raise UserError(
            f"--hf-overrides does not go with {served.reference}: its config says which blocks are loaded, and must "
            "stay as it was written; change the dense model's config and prune again"
        )
    if served.needs_loader and args.load_format not in ("auto", LOAD_FORMAT):
        raise UserError(
            f"--load-format {args.load_format} cannot serve {served.reference} this way; leave it out, it is "
            f"{LOAD_FORMAT}"
        )
    if (served.manifest or served.draft) and args.load_format == "auto":
        args.load_format = LOAD_FORMAT
    if served.folder != served.reference and not args.served_model_name:
        args.served_model_name = [served.reference]
    if served.folder != served.reference or served.draft:
        for flag in ("revision", "hf_config_path"):
            if getattr(args, flag, None) is not None:
                raise UserError(
                    f"--{flag.replace('_', '-')} does not go with --plan, --draft or a pruned model of the hub: name "
                    "the commit behind the dense model, owner/name@COMMIT"
                )
    if served.draft:
        if args.speculative_config is not None:
            raise UserError("--draft and --speculative-config exclude each other")
        if args.pipeline_parallel_size != 1:
            raise UserError(
                f"--draft does not go with --pipeline-parallel-size {args.pipeline_parallel_size}: a draft runs on one "
                "stage only"
            )
        args.speculative_config = served.draft.speculative_config
        if served.draft.several_kinds:
            # vLLM wants all blocks of a draft in one group of the KV cache. It costs sliding windows some memory.
            args.disable_hybrid_kv_cache_manager = True


def say_slow(args: Any) -> None:
    """Say that another --dtype is faster, where a processor serves that has no fast product of bfloat16."""
    from vllm.platforms import current_platform

    from mi_prun.model.loading import lacks_bfloat16  # torch is not loaded for what needs none

    if args.dtype == "auto" and current_platform.is_cpu() and lacks_bfloat16():
        say(
            "this processor has no AVX-512, so it multiplies bfloat16 slowly: with --dtype float32 a prompt takes a "
            "fraction of the time, and the weights twice the memory"
        )


def pruning_router(served: ServedModel) -> Any:
    """Add `GET /v1/pruning`: under /v1, so that vLLM's --api-key guards it like the rest."""
    from fastapi import APIRouter

    router = APIRouter()

    @router.get("/v1/pruning")
    async def pruning() -> dict[str, Any]:
        return served.describe()

    return router
