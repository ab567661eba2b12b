"""The command `mi-prun-ab`: two or more arms behind one OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import sys

from mi_prun.console import run_command
from serve.ab.flags import add_flags, config_of, split_off_engine_flags
from serve.flag_parser import FlagParser

DESCRIPTION = """\
Serve a dense and a pruned model side by side, behind one OpenAI-compatible endpoint, and tell which does better.

  mi-prun-ab --arm dense=MODEL --arm pruned=pruned/ --split dense=95,pruned=5
  mi-prun-ab --arm dense=http://10.0.0.1:8000 --arm pruned=http://10.0.0.2:8000 --model-name llama
  mi-prun-ab --config ab.toml
  mi-prun-ab --arm dense=MODEL --arm pruned=plan.json -- --max-model-len 4096
  mi-prun-ab verdict --url http://127.0.0.1:8080      what a running one has found
  mi-prun-ab export --to kubernetes --config ab.toml -o DIR   the same arms on a cluster; or --to ray-serve

What follows a lone -- is passed on to every engine that is started here. Keys: files, or the environment's
MI_PRUN_AB_API_KEYS (comma between them) and MI_PRUN_AB_ADMIN_KEY. docs/reference/ab.md says the rest.
"""


def main() -> None:
    """Run the command and end the process with its status."""
    sys.exit(run_command(lambda: command(sys.argv[1:])))


def command(arguments: list[str]) -> None:
    """Run `mi-prun-ab` with these arguments. Raises UserError."""
    if arguments[:1] == ["verdict"]:
        from serve.ab.verdict_command import command as verdict

        verdict(arguments[1:])
        return
    if arguments[:1] == ["export"]:
        from serve.ab.export.export import command as export

        export(arguments[1:])
        return
    words, engine_flags = split_off_engine_flags(arguments)
    parser = FlagParser("mi-prun-ab", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument(
        "--reset",
        action="store_true",
        help="forget the state's weights and all figures of the verdict; take the split's weights",
    )
    flags = parser.parse_args(words)
    config = config_of(flags, engine_flags)
    from serve.ab.api.server import run

    run(config, reset=flags.reset)


if __name__ == "__main__":
    main()
