"""The command `mi-prun-ab export`: the same arms and weights for a cluster.

It writes a Ray Serve application, or Kubernetes manifests.
"""

from __future__ import annotations

from pathlib import Path

from mi_prun.errors import UserError
from mi_prun.files import new_folder
from serve.ab.arms.supervisor import model_of
from serve.ab.config import Config
from serve.ab.export import kubernetes, ray_serve
from serve.ab.export.exported_arm import ExportOptions, exported, in_cluster
from serve.ab.flags import add_flags, config_of, split_off_engine_flags
from serve.flag_parser import FlagParser

TARGETS = {"ray-serve": ray_serve.files, "kubernetes": kubernetes.files}


def command(arguments: list[str]) -> None:
    """Run `mi-prun-ab export`. Raises UserError."""
    words, engine_flags = split_off_engine_flags(arguments)
    parser = FlagParser("mi-prun-ab export")
    add, default = parser.add_argument, ExportOptions()
    add("--to", required=True, choices=TARGETS)
    add("--output", "-o", type=Path, required=True, metavar="DIR", help="must not exist, or be empty")
    add("--force", action="store_true", help="replace the output, whole, if it exists")
    add("--model-root", default=default.model_root, help="where the cluster has the models (default: %(default)s)")
    add("--claim", default=default.claim, help="PersistentVolumeClaim that is mounted there (default: %(default)s)")
    add("--image", default="", help="vLLM with this package (default: mi-prun:VERSION, by the Dockerfile written)")
    add("--namespace", default="", help="of Kubernetes (default: the current one)")
    add("--gateway", default=default.gateway, help="the Gateway the route belongs to (default: %(default)s)")
    add("--gateway-class", default="", help="write that Gateway too, of this class")
    add("--replicas", type=int, default=1, help="of each arm (default: %(default)s)")
    add("--max-replicas", type=int, help="Kubernetes: of each arm, where its queue is long (default: twice --replicas)")
    add("--cpu", default=default.cpu, help="Kubernetes: processors that a pod asks for (default: %(default)s)")
    add("--memory", default=default.memory, help="Kubernetes: a pod's memory, and its limit (default: %(default)s)")
    add("--accelerator", default="", help="cpu, where the engines are vLLM's for CPUs; Ray: A100, H100, L4, ...")
    add_flags(parser)
    flags = parser.parse_args(words)
    if flags.replicas < 1:
        raise UserError(f"--replicas must be at least 1, got {flags.replicas}")
    options = ExportOptions(**{name: getattr(flags, name) for name in vars(default)})
    config = config_of(flags, engine_flags)
    for name, text in export(config, flags.to, options, flags.output, force=flags.force).items():
        print(f"{flags.output / name}: {len(text.splitlines())} lines")


def export(config: Config, target: str, options: ExportOptions, output: Path, *, force: bool = False) -> dict[str, str]:
    """Write the files of a target, all or none; return their texts by name.

    Raises UserError for what a cluster cannot have.
    """
    if not config.model_name:
        raise UserError("model_name is missing: the first arm has no model to take it from (--model-name)")
    if not options.model_root.startswith("/"):
        raise UserError(
            "--model-root must be an absolute path in the cluster, like /models, got "
            f"{options.model_root}: a relative path would be read as a hub id"
        )
    arms = [exported(name, arm, config.weights[name], options) for name, arm in config.arms.items()]
    check_places(config, options)
    texts = TARGETS[target](config, arms, options)
    with new_folder(output, force=force) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return texts


def check_places(config: Config, options: ExportOptions) -> None:
    """Check that no two paths end alike: only a path's last part goes into the cluster. Raises UserError."""
    places: dict[str, Path] = {}
    for arm in config.arms.values():
        if not arm.managed:
            continue
        model = Path(model_of(arm))
        for path in (arm.plan, model if model.exists() else None):
            if path is None:
                continue
            at, path = in_cluster(path, options), path.resolve()
            if places.setdefault(at, path) != path:
                raise UserError(f"{places[at]} and {path} would both be {at} in the cluster; rename one")
