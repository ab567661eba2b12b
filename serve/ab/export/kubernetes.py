"""Kubernetes manifests: a route of the Gateway API with the weights, and what each arm is made of.

An arm is a Deployment of vLLM, a Service, a disruption budget, and an autoscaler on the length of its engines' queues.
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
from serve.ab.export.exported_arm import ExportedArm, ExportOptions, respelt
from serve.ab.export.file_text import template, to_yaml

PORT = 8000
PATHS = ("/v1", "/tokenize", "/detokenize")
LARGEST_WEIGHT = 1_000_000  # of a backendRef
SHARE_ERROR = 1e-3
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
SERVICE_HOST = re.compile(r"(?!localhost$)([a-z][-a-z0-9]*)(?:\.([a-z0-9][-a-z0-9]*)\.svc(?:\.cluster\.local)?)?")
SECRET = "mi-prun-ab"
KEEP_ALIVE, KEEP_ALIVE_S = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", 3900  # an engine closes after the gateway (Envoy: an hour)
LEAVE_S = 5  # for the cluster to send no more to a pod that ends
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
QUEUE = "vllm:num_requests_waiting"  # of each engine, at its /metrics
QUEUE_METRIC = QUEUE.replace(":", "_")  # the custom metrics API takes no colon
SCRAPED = {"prometheus.io/scrape": "true", "prometheus.io/path": "/metrics", "prometheus.io/port": str(PORT)}
QUEUE_LENGTH = 5  # of an engine, on average: with more waiting there is another pod
SCALE_DOWN_S = 600  # an engine takes minutes to start, so it is not ended at the first quiet moment


def files(config: Config, arms: Sequence[ExportedArm], options: ExportOptions) -> dict[str, str]:
    """Return the texts by file name. Raises UserError for names that Kubernetes does not take, and foreign URLs."""
    names = {arm.name: _label(f"{config.experiment}-{arm.name}") for arm in arms}
    if len(set(names.values())) != len(names):
        raise UserError(f"the arms' names are alike in Kubernetes ({', '.join(names.values())}): rename one")
    _check(options)
    for arm in arms:
        if config.arms[arm.name].upstream_model or config.arms[arm.name].api_key_env:
            raise UserError(
                f"arm {arm.name}: upstream_model and api_key_env of a URL are the proxy's doing, no route of a cluster "
                "gives a request another model or a key; leave them out, or run mi-prun-ab there"
            )
    started = [arm for arm in arms if arm.url is None]
    options = replace(options, image=options.image or f"mi-prun:{__version__}")
    texts = {
        f"{names[arm.name]}.yaml": to_yaml(
            deployment(names[arm.name], config, arm, options),
            service(names[arm.name], config, options),
            disruption_budget(names[arm.name], config, options),
            autoscaler(names[arm.name], config, options),
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
        queue=QUEUE,
        queue_metric=QUEUE_METRIC,
    )
    return texts


def _check(options: ExportOptions) -> None:
    """Check the settings that only Kubernetes has. Raises UserError."""
    for flag, name in (
        ("--namespace", options.namespace),
        ("--claim", options.claim),
        ("--gateway", options.gateway),
        ("--gateway-class", options.gateway_class),
    ):
        if name and not NAME.fullmatch(name):
            raise UserError(f"{flag} {name}: a name in Kubernetes has small letters, digits, - and ., at most 253")
    if options.accelerator not in ("", "cpu"):
        raise UserError(
            f"--accelerator {options.accelerator}: Kubernetes takes cpu, or nothing for GPUs; which GPU is a matter of "
            "the nodes' labels: write a nodeSelector into the Deployment"
        )
    if options.accelerator == "cpu" and not options.image:
        raise UserError("--accelerator cpu: the image that is built here is vLLM's for GPUs; name another with --image")
    for flag, quantity in (("--cpu", options.cpu), ("--memory", options.memory)):
        if not QUANTITY.fullmatch(quantity) or not float(quantity.rstrip("mkMGTi")):
            raise UserError(f"{flag} {quantity}: it is a quantity of Kubernetes above 0, such as 4, 500m or 16Gi")
    if options.most_replicas < options.replicas:
        raise UserError(f"--max-replicas must be at least --replicas, {options.replicas}; got {options.most_replicas}")


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


def _selector(name: str) -> dict[str, dict[str, str]]:
    return {"matchLabels": {"app.kubernetes.io/name": name}}


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
            # Else what is in flight is broken off at once when a pod is told to end.
            *_words({"shutdown_timeout": round(config.limits.drain_s), **arm.engine}),
        ],
        "env": [
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            {"name": "DO_NOT_TRACK", "value": "1"},
            *([] if KEEP_ALIVE in arm.env else [{"name": KEEP_ALIVE, "value": str(KEEP_ALIVE_S)}]),
            _secret("VLLM_API_KEY", "api-key"),
            _secret("HF_TOKEN", "hf-token"),
            *({"name": key, "value": value} for key, value in arm.env.items()),
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": _resources(arm, options),
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": failures},
        "readinessProbe": {**probe, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**probe, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LEAVE_S)]}}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            {"name": "models", "mountPath": options.model_root, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }  # fmt: skip
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": max(30, LEAVE_S + round(config.limits.drain_s) + 10),
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": options.claim, "readOnly": True}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
        ],
    }
    pods = {"metadata": {"labels": _labels(name, config), "annotations": SCRAPED}, "spec": pod}
    spec = {  # no replicas: the autoscaler's minimum says them
        "selector": _selector(name),
        "progressDeadlineSeconds": round(config.restart.startup_s) + 300,
        "template": pods,
    }
    return _of_arm("apps/v1", "Deployment", name, config, options, spec)


def _resources(arm: ExportedArm, options: ExportOptions) -> dict[str, dict[str, str]]:
    """Return what a pod asks for. Processors have no limit: one that is throttled answers late."""
    limits = {"memory": options.memory}
    if options.accelerator != "cpu":
        limits["nvidia.com/gpu"] = str(arm.gpus)
    return {"requests": {"cpu": options.cpu, **limits}, "limits": limits}


def _command(arm: ExportedArm) -> list[str]:
    if arm.plan:
        return ["mi-prun-serve", "--model", arm.model, "--plan", arm.plan]
    return ["vllm", "serve", arm.model]


def _words(engine: Mapping[str, Any]) -> list[str]:
    """Return arguments as flags again, each in one word, so that a value that looks like a flag is none."""
    words = []
    for name, value in engine.items():
        flag = f"--{respelt(name, '_', '-')}"
        if "." in name and isinstance(value, bool):
            words.append(f"{flag}={json.dumps(value)}")
        elif value is True:
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


def _of_arm(
    version: str, kind: str, name: str, config: Config, options: ExportOptions, spec: dict[str, Any]
) -> dict[str, Any]:
    """Return an object of an arm, with the arm's name and labels."""
    metadata = _metadata(name, options, _labels(name, config))
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def service(name: str, config: Config, options: ExportOptions) -> dict[str, Any]:
    """Return the Service of an arm."""
    spec = {
        "selector": _selector(name)["matchLabels"],
        "ports": [{"name": "http", "port": PORT, "targetPort": "http", "appProtocol": "http"}],
    }
    return _of_arm("v1", "Service", name, config, options, spec)


def disruption_budget(name: str, config: Config, options: ExportOptions) -> dict[str, Any]:
    """Return the disruption budget of an arm: a drain of nodes ends one pod at a time, also where there is only one."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": _selector(name),
    }
    return _of_arm("policy/v1", "PodDisruptionBudget", name, config, options, spec)


def autoscaler(name: str, config: Config, options: ExportOptions) -> dict[str, Any]:
    """Return the autoscaler of an arm, on the requests that wait in its engines. Its minimum holds without figures."""
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": options.replicas,
        "maxReplicas": options.most_replicas,
        "metrics": [
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": QUEUE_METRIC},
                    "target": {"type": "AverageValue", "averageValue": str(QUEUE_LENGTH)},
                },
            }
        ],
        "behavior": {
            "scaleDown": {
                "stabilizationWindowSeconds": SCALE_DOWN_S,
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": SCALE_DOWN_S}],
            }
        },
    }
    return _of_arm("autoscaling/v2", "HorizontalPodAutoscaler", name, config, options, spec)


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
                    "timeouts": {"request": "0s"},  # none: some gateways end an answer after 15 s
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
    """Return the same proportions in whole numbers up to 1,000,000, for the Gateway API; what is not 0 stays so.

    The smallest numbers that say each share within SHARE_ERROR of itself, else the finest.
    Raises UserError for a share that is too small for that.
    """
    total, top = sum(weights.values()), max(weights.values())
    for name, weight in weights.items():
        if 0 < weight * LARGEST_WEIGHT < top / 2:
            raise UserError(
                f"arm {name}: its weight is {weight / top:.2g} of the largest one, and the Gateway API goes down to "
                f"{1 / LARGEST_WEIGHT:g}; take 0, or more"
            )
    whole = _small_weights(weights)
    share = {name: value / sum(whole.values()) for name, value in whole.items()}
    if all(abs(share[name] * total - weight) <= SHARE_ERROR * weight for name, weight in weights.items()):
        return whole
    return {name: max(1, round(weight / top * LARGEST_WEIGHT)) if weight > 0 else 0 for name, weight in weights.items()}


def _small_weights(weights: Mapping[str, float]) -> dict[str, int]:
    fractions = {name: Fraction(weight).limit_denominator(10_000) for name, weight in weights.items()}
    common = math.lcm(*(fraction.denominator for fraction in fractions.values()))
    whole = {name: int(fraction * common) for name, fraction in fractions.items()}
    largest = max(whole.values())
    if largest > LARGEST_WEIGHT:
        whole = {name: value * LARGEST_WEIGHT // largest for name, value in whole.items()}
    return {name: max(value, 1) if weights[name] > 0 else 0 for name, value in whole.items()}
