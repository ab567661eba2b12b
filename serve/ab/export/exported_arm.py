"""An arm as a cluster runs it: its model there, its engine's arguments, its devices."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mi_prun.errors import UserError
from serve.ab.arms.supervisor import model_of
from serve.ab.config import ArmConfig
from vllm_ext.names import LOAD_FORMAT

# Of an engine that is started here: these are the exporter's to say, or no file's to hold.
REFUSED = {
    "model": "the arm says it",
    "host": "the manifest says it",
    "port": "the manifest says it",
    "served_model_name": "model_name says it",
    "load_format": "it follows from the model",
    "api_key": "a key belongs into a Secret, not into a manifest",
    "adapter": "it is a file of this machine: write the healed folder (`mi-prun apply --adapter`), and name that",
    "hf_token": "a token belongs into a Secret, not into a manifest",
}
# Which devices of this machine an arm has here: a pod has others, by the numbers that the cluster gives them.
DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
SECRET = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASSWORD", re.IGNORECASE)  # of a variable's name
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,11}|[0-9]*\.[0-9]+)")
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass(frozen=True)
class ExportedArm:
    """An arm in a cluster.

    model: a hub id, or a folder in the cluster. plan: a file there, of what `mi-prun-serve` drops from the model.

    load_format: "" leaves it to vLLM. engine: vLLM's arguments by their names in Python. gpus: of a replica. url: of
    one that runs already.
    """

    name: str
    weight: float
    model: str
    plan: str
    load_format: str
    engine: Mapping[str, Any]
    env: Mapping[str, str]
    gpus: int
    url: str | None


@dataclass(frozen=True)
class ExportOptions:
    """Settings of an export.

    model_root: where the models lie in the cluster. claim: the volume mounted there. max_replicas: None for twice the
    replicas. cpu, memory: of a pod, as Kubernetes writes quantities.
    """

    model_root: str = "/models"
    claim: str = "models"
    image: str = ""
    namespace: str = ""
    gateway: str = "mi-prun-ab"
    gateway_class: str = ""
    replicas: int = 1
    max_replicas: int | None = None
    cpu: str = "4"
    memory: str = "16Gi"
    accelerator: str = ""

    @property
    def most_replicas(self) -> int:
        return 2 * self.replicas if self.max_replicas is None else self.max_replicas


def exported(name: str, arm: ArmConfig, weight: float, options: ExportOptions) -> ExportedArm:
    """Return an arm as a cluster runs it. Raises UserError for what no cluster can have."""
    engine = parse_flags(arm.flags, origin=f"arm {name}")
    for key, value in engine.items():
        if place := next((text for text in _texts(value) if _is_here(text)), None):
            raise UserError(
                f"arm {name}: --{key.replace('_', '-')} names {place}, a file of this machine; put it into the image, "
                "or the volume, and name its place there"
            )
    gpus = 1
    for parallel in PARALLEL:
        size = engine.get(parallel, 1)
        if not isinstance(size, int) or size < 1:
            raise UserError(f"arm {name}: --{parallel.replace('_', '-')} must be a number from 1 on, got {size}")
        gpus *= size
    for variable in arm.env:
        if SECRET.search(variable):
            raise UserError(
                f"arm {name}: env {variable} looks like a secret, and what is written here is none: leave it out, and "
                "give it to the engine by the cluster's own means (a Secret)"
            )
    model, plan, load_format = "", "", ""
    if arm.url is None:
        if arm.plan is not None:
            plan = in_cluster(arm.plan, options)
        model, load_format = _model(name, arm, options)
    env = {variable: value for variable, value in arm.env.items() if variable not in DEVICES}
    return ExportedArm(name, weight, model, plan, load_format, engine, env, gpus, arm.url)


def _model(name: str, arm: ArmConfig, options: ExportOptions) -> tuple[str, str]:
    """Return where the cluster finds the model, and the load format. It is checked as `mi-prun-serve` would."""
    from mi_prun.plan.plan import Plan
    from serve.served_model import served_model

    if arm.plan is not None:
        Plan.read(arm.plan)
    reference = model_of(arm)
    folder = Path(reference)
    if arm.plan is not None and not folder.exists():
        return reference, ""  # owner/name@COMMIT too, which mi-prun-serve takes beside a plan
    served = served_model(reference)
    if not folder.exists():
        return reference, ""
    if served.manifest is not None and served.manifest.weights == "virtual":
        raise UserError(
            f"arm {name}: {reference} is a virtual folder, its weights lie elsewhere on this machine; apply the plan "
            "without --virtual"
        )
    return in_cluster(folder, options), LOAD_FORMAT if served.manifest else ""


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value, in a list or an object too, and what stands behind a `=` in them."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield from {value, value.partition("=")[2]} - {""}


def _is_here(text: str) -> bool:
    """Return whether a text is the path of a file or folder of this machine."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # a text that no path can be; a home of nobody
        return ("/" in text or Path(text).suffix != "") and Path(text).expanduser().exists()
    return False


def in_cluster(path: Path, options: ExportOptions) -> str:
    """Return where a file or folder lies in the cluster."""
    return str(PurePosixPath(options.model_root) / path.resolve().name)


def respelt(flag: str, old: str, new: str) -> str:
    """Return a flag with other signs between its words. The keys of a JSON flag, behind a dot, stay as they are."""
    head, dot, keys = flag.partition(".")
    return f"{head.replace(old, new)}{dot}{keys}"


def parse_flags(flags: Sequence[str], *, origin: str) -> dict[str, Any]:
    """Read vLLM's command line as arguments in Python: `--max-model-len 4096` is {"max_model_len": 4096}."""
    arguments: dict[str, Any] = {}
    rest = list(flags)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 4:
            raise UserError(f"{origin}: {word!r} is no flag in full (--name or --name=value); write it out")
        flag, equals, text = word[2:].partition("=")
        values = [text] if equals else []
        while not equals and rest and (not rest[0].startswith("-") or NUMBER.fullmatch(rest[0])):
            values.append(rest.pop(0))
        key = respelt(flag, "-", "_")
        if key in REFUSED:
            raise UserError(f"{origin}: --{flag} cannot be exported: {REFUSED[key]}")
        value: Any = True
        if not values and key.startswith("no_"):
            key, value = key.removeprefix("no_"), False
        elif values:
            read = [_value(text) for text in values]
            value = read[0] if len(read) == 1 else read
        if key in arguments:
            raise UserError(f"{origin}: --{flag} stands there twice, and an argument has one value; leave one out")
        arguments[key] = value
    return arguments


def _value(text: str) -> Any:
    """Read a plain number, true or false, or a JSON object; anything else is text, a commit of digits too.

    A JSON list stays text: read, it could not be told from several words.
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    if text.startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return text
