"""The flags of `mi-prun-ab` that make a Config; `mi-prun-ab export` has them too."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError
from serve.ab.config import Config, parse_arm, parse_split, read_config


def split_off_engine_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return what stands before a lone `--`, and what stands behind it: flags for the engines."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that make a Config; `config_of` reads them."""
    add = parser.add_argument
    add("--config", type=Path, metavar="AB.TOML", help="fields of the configuration; flags win over it")
    add("--arm", action="append", metavar="NAME=TARGET", help="a model folder, hub id, plan.json or URL; repeatable")
    add("--split", metavar="NAME=WEIGHT,...", help="weights of the arms (default: all to the first)")
    add("--control", metavar="NAME", help="the arm to compare with (default: the first)")
    add(
        "--model-name",
        metavar="NAME",
        help="what clients ask for (default: the first arm's model, or what its URL serves)",
    )
    add("--experiment", metavar="NAME", help="name that the random assignment depends on; another name assigns anew")
    add("--shadow-share", type=float, metavar="SHARE", help="share of requests mirrored to another arm, 0..1")
    add("--guardrail", action="append", metavar="RULE", help="such as 'error_rate<1%%'; repeatable")
    add("--host", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, help="port to listen on (default: 8080)")
    add(
        "--state", type=Path, metavar="FILE", help="split and figures, kept over a restart (default: mi-prun-ab.sqlite)"
    )
    add("--access-log", type=Path, metavar="FILE", help="JSON lines (default: standard output)")
    add("--log-prompts", action="store_true", default=None, help="write prompts into the access log")
    add("--log-folder", type=Path, metavar="FOLDER", help="where the engines' own output goes")
    add("--api-keys-file", type=Path, metavar="FILE", help="one key on each line")
    add("--admin-key-file", type=Path, metavar="FILE", help="the key of the admin routes and of operators")
    add("--drain-seconds", type=float, metavar="S", help="seconds for requests in flight at SIGTERM (default: 30)")


def config_of(flags: argparse.Namespace, engine_flags: list[str]) -> Config:
    """Return the Config of parsed flags. engine_flags: for every engine that is started here. Raises UserError."""
    fields: dict[str, Any] = {
        name: getattr(flags, name)
        for name in (
            "control", "model_name", "experiment", "host", "port", "state", "access_log", "log_prompts", "log_folder",
            "api_keys_file", "admin_key_file",
        )
    }  # fmt: skip
    if flags.arm:
        parsed = [parse_arm(words) for words in flags.arm]
        arms = dict(parsed)
        if len(arms) != len(parsed):
            raise UserError("--arm: every arm needs a name of its own")
        fields["arms"] = arms
    if flags.split is not None:
        fields["split"] = parse_split(flags.split)
    if flags.guardrail:
        fields["guardrails"] = flags.guardrail
    if flags.shadow_share is not None:
        fields["shadow"] = {"share": flags.shadow_share}
    if flags.drain_seconds is not None:
        fields["limits"] = {"drain_s": flags.drain_seconds}
    config = read_config(flags.config, fields)
    if not engine_flags:
        return config
    if not any(arm.managed for arm in config.arms.values()):
        raise UserError("flags after -- are for engines that are started here, and every arm has a URL")
    managed = {
        name: arm.model_copy(update={"flags": (*engine_flags, *arm.flags)}) if arm.managed else arm
        for name, arm in config.arms.items()
    }
    return config.model_copy(update={"arms": managed})
