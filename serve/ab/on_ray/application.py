"""The Ray Serve application that `mi-prun-ab export --to ray-serve` names: `serve.ab.on_ray.application:build`.

A deployment for each arm that is started here, whose replicas run an engine each, and the proxy of `mi-prun-ab` as the
ingress before them. The proxy asks replicas through Ray instead of over connections; all else of it is as it is on one
machine. Only Ray imports this module.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.ab.api.app import create_app
from serve.ab.arms.arm import make_arms
from serve.ab.config import Config, read_config
from serve.ab.on_ray.deployment_name import INGRESS, deployment_of
from serve.ab.on_ray.engine_replica import EngineReplica
from serve.ab.on_ray.replica_upstream import Ask, ReplicaUpstream


class Ingress:
    """The proxy of `mi-prun-ab` as a replica. What it finds out it keeps for as long as it runs."""

    def __init__(self, config: Config, arms: dict[str, DeploymentHandle]) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._scratch = tempfile.TemporaryDirectory(prefix="mi-prun-ab-")
        config = config.model_copy(update={"state": Path(self._scratch.name) / "ab.sqlite"})
        self._upstream = ReplicaUpstream(config.limits.connect_s, {name: _ask(handle) for name, handle in arms.items()})
        served = make_arms(config)
        for name, url in self._upstream.urls.items():
            served[name].came_up(url, None)
        self._app = create_app(config, served, upstream=self._upstream)

    def __serve_build_asgi_app__(self) -> Any:
        """Return what Ray serves at the application's route."""
        return self._app

    def reconfigure(self, settings: dict[str, Any]) -> None:
        """Take `user_config` of serve.yaml, at the start and after each `serve deploy` that changes it."""
        self._upstream.replicas = int(settings["replicas"])
        experiment = self._app.state.ab.experiment
        experiment.change(
            experiment.state.version,
            who="serve deploy",
            why="user_config of serve.yaml",
            weights=settings["weights"],
            shadow_share=settings["shadow_share"],
        )


def _ask(handle: DeploymentHandle) -> Ask:
    ask: Ask = handle.options(method_name="ask", stream=True).remote
    return ask


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application. args: fields of a configuration (docs/reference/ab.md). Raises UserError."""
    config = read_config(None, args)
    arms = {
        name: serve.deployment(EngineReplica, name=deployment_of(name)).bind(config, name)
        for name, arm in config.arms.items()
        if arm.managed
    }
    return serve.deployment(serve.ingress()(Ingress), name=INGRESS).bind(config, arms)
