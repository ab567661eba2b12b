"""`mi-prun-serve`: what is wrong is said before vLLM is imported; the rest is vLLM's."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mi_prun.console import run_command
from mi_prun.errors import UserError
from serve.flag_parser import FlagParser
from serve.kept_folder import kept_folder
from serve.scratch import scratch_folder
from serve.served_model import DRAFT_TOKENS, ServedModel, drafted_model, planned_model, served_model
from serve.server import HOST, PORT, check_port, run
from vllm_ext.compat import check_version

DESCRIPTION = """\
Serve a pruned or a dense model on vLLM's OpenAI-compatible server.

  mi-prun-serve --model pruned/
  mi-prun-serve --model DENSE --plan plan.json     the pruned model, out of the dense one's files
  mi-prun-serve --model DENSE --plan plan.json --adapter healed.safetensors    healed as it is read
  mi-prun-serve --model DENSE --draft plan.json    the dense model's answers, drafted by the pruned one
  mi-prun-serve --model pruned/ --port 8001 --max-model-len 4096 --api-key KEY

Every flag of `vllm serve` is taken and passed on; --vllm-help lists them.
GET /v1/pruning says what was dropped from the served model, and what it cost.
"""


def main() -> None:
    sys.exit(run_command(lambda: serve(sys.argv[1:])))


def serve(arguments: list[str]) -> None:
    parser = FlagParser("mi-prun-serve", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder that `mi-prun apply` wrote, a dense model's folder, or a hub id")
    parser.add_argument(
        "--plan", type=Path, help="serve the dense --model without the blocks that this plan.json drops"
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="FILE", help="with --plan: the file that `mi-prun heal --adapter` wrote"
    )
    parser.add_argument(
        "--draft",
        type=Path,
        metavar="PLAN_OR_PRUNED",
        help="speculative decoding: the dense --model, drafted by its own blocks that a plan or a pruned folder keeps",
    )
    parser.add_argument(
        "--draft-tokens",
        type=int,
        metavar="N",
        help=f"tokens drafted at a time (default: the plan's own number, or {DRAFT_TOKENS})",
    )
    parser.add_argument("--assume-uniform", action="store_true", help="with --plan or --draft: as in `mi-prun apply`")
    parser.add_argument("--host", default=HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on (default: %(default)s)")
    parser.add_argument("--revision", help="a branch, tag or commit of a hub id, without --plan or --draft")
    parser.add_argument("--vllm-help", action="store_true", help="list vLLM's own flags")
    own, rest = parser.parse_known_args(arguments)
    if own.vllm_help:
        from serve.server import parse_arguments

        parse_arguments(["--help"])
        return
    if not own.model:
        raise UserError(
            "--model is missing: write --model MODEL; it is a folder that `mi-prun apply` wrote, a dense model's "
            "folder or a hub id"
        )
    if not 1 <= own.port <= 65_535:
        raise UserError(f"--port must be in 1..65535, got {own.port}")
    if own.plan and own.draft:
        raise UserError("--plan and --draft exclude each other: serve the pruned model, or the dense one with a draft")
    if own.adapter and own.draft:
        raise UserError("--adapter does not go with --draft: a draft shares the served model's weights, unhealed")
    if own.adapter and not own.plan:
        raise UserError("--adapter needs --plan: it heals the dense --model without the blocks that a plan drops")
    if own.assume_uniform and not (own.plan or own.draft):
        raise UserError("--assume-uniform needs --plan or --draft: a folder that was written says it itself")
    if own.draft_tokens is not None and not own.draft:
        raise UserError("--draft-tokens needs --draft")
    if own.draft_tokens is not None and own.draft_tokens < 1:
        raise UserError(f"--draft-tokens must be at least 1, got {own.draft_tokens}")
    if own.revision and (own.plan or own.draft):
        raise UserError(
            "--revision does not go with --plan or --draft: name the commit behind the model, owner/name@COMMIT"
        )
    if (own.plan or own.draft) and vllm_flag(rest, "--download-dir"):
        raise UserError(
            "--download-dir does not go with --plan or --draft: the dense model is fetched into the hub's cache; set "
            "HF_HOME to have that elsewhere"
        )
    check_version()
    check_port(own.host, own.port)
    with scratch_folder() as scratch:
        served = open_served(own, scratch, dummy=vllm_flag(rest, "--load-format") == "dummy")
        if own.revision and served.folder == served.reference:
            rest += ["--revision", own.revision]
        run(served, ["--model", served.folder, "--host", own.host, "--port", str(own.port), *rest], scratch)


def vllm_flag(rest: list[str], name: str) -> str | None:
    """Return the value of one of vLLM's own flags, before vLLM parses them. name: `--load-format`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, f"--{name[2:].replace('-', '_')}", dest="value")
    value: str | None = parser.parse_known_args(rest)[0].value
    return value


def open_served(own: argparse.Namespace, scratch: Path, *, dummy: bool = False) -> ServedModel:
    """Check the model, the plan and the draft; whatever is wrong with them is said here."""
    if own.plan:
        served = planned_model(own.model, own.plan, scratch, adapter=own.adapter, assume_uniform=own.assume_uniform)
        return replace(served, folder=str(kept_folder(Path(served.folder))))
    if own.draft:
        served = drafted_model(own.model, own.draft, own.draft_tokens, scratch, assume_uniform=own.assume_uniform)
        return replace(served, draft=served.draft and replace(served.draft, folder=kept_folder(served.draft.folder)))
    return served_model(own.model, dummy=dummy, revision=own.revision)


if __name__ == "__main__":
    main()
