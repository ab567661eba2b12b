"""A Ray Serve application: a deployment of engines for each arm, and the proxy of `mi-prun-ab` before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mi_prun.console import say
from serve.ab.config import Config
from serve.ab.export.exported_arm import ExportedArm, ExportOptions
from serve.ab.export.file_text import template, to_yaml
from serve.ab.on_ray.deployment_name import APPLICATION, INGRESS, deployment_of

# Said by Ray, or by serve.yaml outside of the arguments: what changes in them starts every engine anew.
NOT_ARGUMENTS = {"arms", "split", "host", "port", "state", "shadow"}
OF_THIS_MACHINE = ("api_keys_file", "admin_key_file", "access_log", "log_folder")
HEALTH_S = 2.0  # between two looks at an engine; Ray's own 10 s are long where the next arm answers in its place


def files(config: Config, arms: Sequence[ExportedArm], options: ExportOptions) -> dict[str, str]:
    """Return the texts by file name. What lies on this machine alone is left out, and said."""
    for name in OF_THIS_MACHINE:
        if getattr(config, name) is not None:
            keys = name.endswith("_file")
            say(
                f"{name} {getattr(config, name)} is left out: it is a file of this machine; on Ray "
                + ("keys come from the nodes' environment" if keys else "the log goes to the replica's standard output")
            )
    folders = {path for arm in arms for path in (arm.model, arm.plan) if path.startswith("/")}
    return {
        "serve.yaml": to_yaml(application(config, arms, options)),
        "README.md": template("ray.md.j2", folders=sorted(folders)),
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
                "import_path": APPLICATION,
                "args": arguments(config, arms),
                "deployments": [
                    ingress(config, arms, options),
                    *(engines(config, arm, options) for arm in arms if arm.url is None),
                ],
            }
        ],
    }


def arguments(config: Config, arms: Sequence[ExportedArm]) -> dict[str, Any]:
    """Return what of the configuration is no default, with the arms as the cluster has them."""
    said = config.model_dump(mode="json", exclude_defaults=True, exclude=NOT_ARGUMENTS | {*OF_THIS_MACHINE})
    shadow = config.shadow.model_dump(mode="json", exclude_defaults=True, exclude={"share"})
    placed = {}
    for arm in arms:
        place = {"model": arm.model, "plan": arm.plan or None, "env": dict(arm.env)} if arm.url is None else {}
        placed[arm.name] = config.arms[arm.name].model_copy(update=place).model_dump(mode="json", exclude_defaults=True)
    return {**said, **({"shadow": shadow} if shadow else {}), "arms": placed}


def ingress(config: Config, arms: Sequence[ExportedArm], options: ExportOptions) -> dict[str, Any]:
    """Return the proxy's deployment. Its `user_config` is what changes without a restart."""
    return {
        "name": INGRESS,
        "num_replicas": options.replicas,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": config.limits.connections,
        "graceful_shutdown_timeout_s": config.limits.drain_s,
        "user_config": {
            "weights": {arm.name: arm.weight for arm in arms},
            "shadow_share": config.shadow.share,
            "replicas": options.replicas,
        },
    }


def engines(config: Config, arm: ExportedArm, options: ExportOptions) -> dict[str, Any]:
    """Return an arm's deployment: each replica an engine with GPUs of its own, or with a processor."""
    actor: dict[str, Any] = {"num_cpus": 1}
    if options.accelerator != "cpu":
        actor["num_gpus"] = arm.gpus
        if options.accelerator:
            actor["accelerator_type"] = options.accelerator
    return {
        "name": deployment_of(arm.name),
        "num_replicas": options.replicas,
        "ray_actor_options": actor,
        "max_ongoing_requests": config.limits.connections,
        "health_check_period_s": HEALTH_S,
        "graceful_shutdown_timeout_s": config.limits.drain_s,
    }
