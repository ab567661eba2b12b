"""`mi-prun-serve`: what is wrong is said before vLLM is imported; the rest is vLLM's."""

from __future__ import annotations

import argparse
import sys

from mi_prun.console import run_command
from mi_prun.errors import UserError
from serve.served_model import served_model
from serve.server import HOST, PORT, check_port, run

DESCRIPTION = """\
Serve a pruned or a dense model on vLLM's OpenAI-compatible server.

  mi-prun-serve --model pruned/
  mi-prun-serve --model pruned/ --port 8001 --max-model-len 4096 --api-key KEY

Every flag of `vllm serve` is taken and passed on; --vllm-help lists them.
GET /v1/pruning says what was dropped from the served model, and what it cost.
"""


def main() -> None:
    sys.exit(run_command(lambda: serve(sys.argv[1:])))


def serve(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "mi-prun-serve",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", help="a folder that `mi-prun apply` wrote, a dense model's folder, or a hub id")
    parser.add_argument("--host", default=HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on (default: %(default)s)")
    parser.add_argument("--vllm-help", action="store_true", help="list vLLM's own flags")
    own, rest = parser.parse_known_args(arguments)
    if own.vllm_help:
        from serve.server import parse_arguments

        parse_arguments(["--help"])
        return
    if not own.model:
        raise UserError(
            "--model is missing: name a folder that `mi-prun apply` wrote, a dense model's folder or a hub id"
        )
    if not 1 <= own.port <= 65_535:
        raise UserError(f"--port must be in 1..65535, got {own.port}")
    served = served_model(own.model)
    check_port(own.host, own.port)
    from vllm_ext.compat import check_version

    check_version()
    run(served, ["--model", own.model, "--host", own.host, "--port", str(own.port), *rest])


if __name__ == "__main__":
    main()
