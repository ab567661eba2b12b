"""Kubernetes manifests: a Deployment of vLLM and a Service for each arm, and a route of the Gateway API with the
weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

from mi_prun.errors import UserError
from mi_prun.version import __version__
from serve.ab.config import Config
from serve.ab.export.exported_arm import ExportedArm, ExportOptions
from serve.ab.export.file_text import template, to_yaml

PORT = 8000
PATHS = ("/v1", "/tokenize", "/detokenize")
LARGEST_WEIGHT = 1_000_000  # of a backendRef
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
SERVICE_HOST = re.compile(r"([a-z][-a-z0-9]*)(?:\.([a-z0-9][-a-z0-9]*)(?:\.svc(?:\.cluster\.local)?)?)?")
SECRET = "mi-prun-ab"


def files(config: Config, arms: Sequence[ExportedArm], options: ExportOptions) -> dict[str, str]:
    """Return the texts by file name. Raises UserError for names that Kubernetes does not take, and foreign URLs."""
    names = {arm.name: _label(f"{config.experiment}-{arm.name}") for arm in arms}
    if len(set(names.values())) != len(names):
        raise UserError(f"the arms' names are alike in Kubernetes ({', '.join(names.values())}): rename one")
    started = [arm for arm in arms if arm.url is None]
    options = replace(options, image=options.image or f"mi-prun:{__version__}")
    texts = {
        f"{names[arm.name]}.yaml": to_yaml(
            deployment(names[arm.name], config, arm, options), service(names[arm.name], config, options)
        )
        for arm in started
    }
    routes = [route(config, arms, names, options)]
    if options.gateway_class:
        routes.insert(0, gateway(options))
    texts["route.yaml"] = to_yaml(*routes)
    texts["Dockerfile"] = template("Dockerfile.j2", version=__version__)
    texts["README.md"] = template(
        "kubernetes.md.j2",
        image=options.image,
        claim=options.claim,
        root=options.model_root,
        secret=SECRET,
        folders=sorted({path for arm in started for path in (arm.model, arm.plan) if path.startswith("/")}),
        gateway=options.gateway,
        writes_gateway=bool(options.gateway_class),
        namespace=options.namespace,
    )
    return texts


def _label(name: str) -> str:
    label = name.lower().replace("_", "-").replace(".", "-")
    if not LABEL.fullmatch(label):
        raise UserError(f"{name!r} cannot name a Service: it takes letters, digits and -, from a letter on, at most 63")
    return label


def _metadata(name: str, options: ExportOptions, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if options.namespace:
        metadata["namespace"] = options.namespace
    if labels:
        metadata["labels"] = dict(labels)
    return metadata


def _labels(name: str, config: Config) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/part-of": _label(config.experiment),
        "app.kubernetes.io/managed-by": "mi-prun-ab",
    }


def deployment(name: str, config: Config, arm: ExportedArm, options: ExportOptions) -> dict[str, Any]:
    """Return the Deployment of an arm."""
    probe = {"httpGet": {"path": "/health", "port": "http"}}
    failures = max(1, round(config.restart.startup_s / 10))
    container = {
        "name": "vllm",
        "image": options.image,
        "command": _command(arm),
        "args": [
            "--host", "0.0.0.0",
            "--port", str(PORT),
            "--served-model-name", *config.names,
            *(["--load-format", arm.load_format] if arm.load_format else []),
            *_words(arm.engine),
        ],
        "env": [
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            {"name": "DO_NOT_TRACK", "value": "1"},
            _secret("VLLM_API_KEY", "api-key"),
            _secret("HF_TOKEN", "hf-token"),
            *({"name": key, "value": value} for key, value in arm.env.items()),
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {"nvidia.com/gpu": str(arm.gpus)}, "requests": {"nvidia.com/gpu": str(arm.gpus)}},
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": failures},
        "readinessProbe": {**probe, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**probe, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            {"name": "models", "mountPath": options.model_root, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }  # fmt: skip
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": max(30, round(config.limits.drain_s) + 10),
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": options.claim, "readOnly": True}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
        ],
    }
    labels = _labels(name, config)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(name, options, labels),
        "spec": {
            "replicas": options.replicas,
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _command(arm: ExportedArm) -> list[str]:
    if arm.plan:
        return ["mi-prun-serve", "--model", arm.model, "--plan", arm.plan]
    return ["vllm", "serve", arm.model]


def _words(engine: Mapping[str, Any]) -> list[str]:
    """Return arguments as flags again, each in one word, so that a value that looks like a flag is none."""
    words = []
    for name, value in engine.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [flag, *map(_word, value)]
        else:
            words.append(f"{flag}={_word(value)}")
    return words


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


def _secret(variable: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key, "optional": True}}}


def service(name: str, config: Config, options: ExportOptions) -> dict[str, Any]:
    """Return the Service of an arm."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, options, _labels(name, config)),
        "spec": {
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http", "appProtocol": "http"}],
        },
    }


def gateway(options: ExportOptions) -> dict[str, Any]:
    """Return the Gateway that the route belongs to."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": _metadata(options.gateway, options),
        "spec": {
            "gatewayClassName": options.gateway_class,
            "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}],
        },
    }


def route(
    config: Config, arms: Sequence[ExportedArm], names: Mapping[str, str], options: ExportOptions
) -> dict[str, Any]:
    """Return the route with the weights. A weight of 0 is kept: a change of one number gives that arm requests."""
    weights = whole_weights({arm.name: arm.weight for arm in arms})
    backends = [{**_backend(arm, names[arm.name]), "weight": weights[arm.name]} for arm in arms]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": _metadata(_label(config.experiment), options),
        "spec": {
            "parentRefs": [{"name": options.gateway}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": path}} for path in PATHS],
                    "backendRefs": backends,
                }
            ],
        },
    }


def _backend(arm: ExportedArm, name: str) -> dict[str, Any]:
    if arm.url is None:
        return {"name": name, "port": PORT}
    parts = urlsplit(arm.url)
    host = SERVICE_HOST.fullmatch(parts.hostname or "")
    if not host or parts.scheme != "http" or parts.path not in ("", "/"):
        raise UserError(
            f"arm {arm.name}: {arm.url} is no Service of the cluster (http://NAME[.NAMESPACE.svc][:PORT]), "
            "and a route of the Gateway API sends to nothing else"
        )
    backend = {"name": host[1], "port": parts.port or 80}
    return {**backend, "namespace": host[2]} if host[2] else backend


def whole_weights(weights: Mapping[str, float]) -> dict[str, int]:
    """Return the same proportions in whole numbers up to 1,000,000, for the Gateway API; what is not 0 stays so."""
    fractions = {name: Fraction(weight).limit_denominator(10_000) for name, weight in weights.items()}
    common = math.lcm(*(fraction.denominator for fraction in fractions.values()))
    whole = {name: int(fraction * common) for name, fraction in fractions.items()}
    largest = max(whole.values())
    if largest > LARGEST_WEIGHT:
        whole = {name: value * LARGEST_WEIGHT // largest for name, value in whole.items()}
    return {name: max(value, 1) if weights[name] > 0 else 0 for name, value in whole.items()}
