"""A Ray Serve LLM application: each arm an LLMConfig, an ingress that draws the arm as the proxy does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mi_prun.errors import UserError
from serve.ab.config import Config
from serve.ab.export.exported_arm import ExportedArm, ExportOptions
from serve.ab.export.file_text import template, to_yaml

MODULE = "ab_app"


def files(config: Config, arms: Sequence[ExportedArm], options: ExportOptions) -> dict[str, str]:
    """Return the texts by file name. Raises UserError for what Ray Serve LLM cannot run."""
    if config.model_aliases:
        raise UserError("model_aliases: Ray Serve serves a model under one name; leave them out")
    for arm in arms:
        if arm.url is not None:
            raise UserError(f"arm {arm.name} is a URL: Ray Serve starts its own engines; name a model")
        if arm.plan:
            raise UserError(
                f"arm {arm.name} is a plan: Ray Serve opens folders; write one with `mi-prun apply {arm.model} ... -o`"
            )
    return {
        "serve.yaml": to_yaml(application(config, arms, options)),
        f"{MODULE}.py": template("ab_app.py.j2"),
        "README.md": template("ray.md.j2", folders=sorted({arm.model for arm in arms if arm.model.startswith("/")})),
    }


def application(config: Config, arms: Sequence[ExportedArm], options: ExportOptions) -> dict[str, Any]:
    """Return the application, as `serve run` and `serve deploy` take it."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.host, "port": config.port},
        "applications": [
            {
                "name": config.experiment,
                "route_prefix": "/",
                "import_path": f"{MODULE}:build",
                "args": {
                    "model_name": config.model_name,
                    "experiment": config.experiment,
                    "weights": {arm.name: arm.weight for arm in arms},
                    "sticky_header": config.sticky_header,
                    "llm_configs": [llm_config(config, arm, options) for arm in arms],
                },
            }
        ],
    }


def llm_config(config: Config, arm: ExportedArm, options: ExportOptions) -> dict[str, Any]:
    """Return the LLMConfig of an arm."""
    engine: dict[str, Any] = dict(arm.engine)
    if arm.load_format:
        engine["load_format"] = arm.load_format
    arguments: dict[str, Any] = {
        "model_loading_config": {"model_id": f"{config.model_name}@{arm.name}", "model_source": arm.model},
        "engine_kwargs": engine,
        "deployment_config": {
            "autoscaling_config": {"min_replicas": options.replicas, "max_replicas": options.replicas},
            "graceful_shutdown_timeout_s": config.limits.drain_s,
        },
        "runtime_env": {"env_vars": {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **arm.env}},
    }
    if options.accelerator == "cpu":
        arguments["accelerator_config"] = {"kind": "cpu"}
    elif options.accelerator:
        arguments["accelerator_type"] = options.accelerator
    return arguments
