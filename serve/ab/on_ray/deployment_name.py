"""The names of the deployments, as `serve.yaml` and Ray's own tools say them."""

from __future__ import annotations

APPLICATION = "serve.ab.on_ray.application:build"
INGRESS = "ingress"


def deployment_of(arm: str) -> str:
    """Return the name of an arm's deployment; no arm's is the ingress's."""
    return f"arm-{arm}"
