"""`mi-prun-ab export`: what is written, checked against published schemas, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mi_prun.errors import UserError
from serve.ab.config import Config, read_config
from serve.ab.export.export import export
from serve.ab.export.exported_arm import DEVICES, ExportOptions, parse_flags
from serve.ab.export.kubernetes import _words, whole_weights

SCHEMAS = Path(__file__).with_name("schemas")
HOW_TO = Path(__file__).parents[4] / "docs" / "how-to" / "ab-on-a-cluster.md"
VERSIONS = sorted(path.stem.removeprefix("kubernetes-") for path in SCHEMAS.glob("kubernetes-*.json"))
ENV = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}
FLAGS = ["--max-model-len", "256", "--tensor-parallel-size=2", "--no-enable-prefix-caching"]


@pytest.fixture(scope="module")
def pruned(prune: Callable[..., Path], reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(reference, tmp_path_factory.mktemp("export") / "pruned", [2, 3])


def config_of(**fields: Any) -> Config:
    return Config.model_validate({"model_name": "llama", "experiment": "trial", **fields})


@pytest.fixture
def config(pruned: Path) -> Config:
    return config_of(
        arms={
            "dense": {"model": "meta-llama/Llama-3.1-8B", "flags": FLAGS},
            "pruned": {"model": str(pruned), "flags": FLAGS, "env": ENV},
        },
        split={"dense": 97.5, "pruned": 2.5},
    )


def documents(folder: Path) -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted(folder.glob("*.yaml"))]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def strict(schema: Any) -> Any:
    """Of a custom resource: fields that the definition does not know are refused, as a typing error would go unseen."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    stricter = {key: strict(value) for key, value in schema.items()}
    if (
        isinstance(stricter.get("properties"), dict)
        and "additionalProperties" not in stricter
        and stricter.get("type") == "object"
    ):
        stricter["additionalProperties"] = False
    return stricter


def validators(version: str) -> dict[str, jsonschema.protocols.Validator]:
    core = json.loads((SCHEMAS / f"kubernetes-{version}.json").read_text())
    gateway = json.loads((SCHEMAS / "gateway-api-1.0.json").read_text())
    validators = {
        kind: jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": core["$defs"]})
        for kind in ("Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler")
    }
    for kind in ("HTTPRoute", "Gateway"):
        schema = strict(gateway["$defs"][kind])
        schema["properties"]["metadata"] = {"type": "object"}
        validators[kind] = jsonschema.Draft202012Validator(schema)
    return validators


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("accelerator", ["", "cpu"])
def test_kubernetes_manifests_fit_the_published_schemas(
    config: Config, tmp_path: Path, version: str, accelerator: str
) -> None:
    image = "vllm-cpu:1" if accelerator else ""
    options = ExportOptions(gateway_class="eg", namespace="llm", replicas=2, accelerator=accelerator, image=image)
    export(config, "kubernetes", options, tmp_path / "out")
    written = documents(tmp_path / "out")
    of_an_arm = ["Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service"]
    assert sorted(document["kind"] for document in written) == sorted([*of_an_arm, *of_an_arm, "Gateway", "HTTPRoute"])
    for document in written:
        validators(version)[document["kind"]].validate(document)
        assert document["metadata"]["namespace"] == "llm"


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the objects of a manifest are whose fields a schema names."""
    if isinstance(document, list):
        for number, part in enumerate(document):
            yield from places(part, (*path, number))
    elif isinstance(document, dict):
        yield path
        for name, part in document.items():
            yield from places(part, (*path, name))


OF_ANY_FIELDS = {"metadata", "labels", "annotations", "matchLabels", "limits", "requests"}  # or of a Service's selector


@pytest.mark.parametrize("version", VERSIONS)
def test_a_misspelt_field_is_found_wherever_it_is(config: Config, tmp_path: Path, version: str) -> None:
    export(config, "kubernetes", ExportOptions(gateway_class="eg"), tmp_path / "out")
    refused: dict[str, int] = {}
    for document in documents(tmp_path / "out"):
        validator = validators(version)[document["kind"]]
        for path in places(document):
            if OF_ANY_FIELDS & set(path) or (document["kind"] == "Service" and "selector" in path):
                continue
            mutant = copy.deepcopy(document)
            place: Any = mutant
            for step in path:
                place = place[step]
            place["misspelt"] = 1
            assert not validator.is_valid(mutant), (document["kind"], path)
            refused[document["kind"]] = refused.get(document["kind"], 0) + 1
    assert refused["Deployment"] > 20
    assert refused["HorizontalPodAutoscaler"] > 8
    assert min(refused.values()) >= 2


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "startupProbe", "httpGet", "port"), 1.5),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "readinessProbe", "periodSeconds"), "5"),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "livenessProbe", "failureThreshold"), "6"),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "resources", "limits"), ["memory"]),
        ("Service", ("spec", "ports", 0, "port"), "http"),
        ("PodDisruptionBudget", ("apiVersion",), "policy/v1beta1"),
        ("PodDisruptionBudget", ("spec", "maxUnavailable"), [1]),
        ("HorizontalPodAutoscaler", ("apiVersion",), "autoscaling/v2beta2"),
        ("HorizontalPodAutoscaler", ("spec", "maxReplicas"), "2"),
        ("HorizontalPodAutoscaler", ("spec", "metrics", 0, "pods", "target", "type"), None),
        ("HTTPRoute", ("spec", "rules", 0, "backendRefs", 0, "weight"), 1_000_001),
        ("Gateway", ("spec", "listeners", 0, "protocol"), 1),
    ],
)
def test_a_wrong_value_is_refused(config: Config, tmp_path: Path, kind: str, path: tuple[Any, ...], value: Any) -> None:
    export(config, "kubernetes", ExportOptions(gateway_class="eg"), tmp_path / "out")
    document = next(document for document in documents(tmp_path / "out") if document["kind"] == kind)
    place = document
    for step in path[:-1]:
        place = place[step]
    assert path[-1] in place
    place[path[-1]] = value
    for version in VERSIONS:
        assert not validators(version)[kind].is_valid(document), version


def test_an_arm_scales_with_its_engines_queue(config: Config, tmp_path: Path) -> None:
    options = ExportOptions(replicas=3, max_replicas=7, cpu="8", memory="64Gi")
    export(config, "kubernetes", options, tmp_path / "out")
    written = {(document["kind"], document["metadata"]["name"]): document for document in documents(tmp_path / "out")}
    said = (tmp_path / "out" / "README.md").read_text()
    rule = textwrap.dedent(said[said.index("       - seriesQuery") : said.index("   Without the metric")]).rstrip()
    assert textwrap.indent(f"{rule}\n\n", "    ", str.strip) in HOW_TO.read_text()
    for name in ("trial-dense", "trial-pruned"):
        deployment = written["Deployment", name]["spec"]
        assert "replicas" not in deployment  # each `kubectl apply` would undo what the autoscaler did
        scaled = written["HorizontalPodAutoscaler", name]["spec"]
        assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert (scaled["minReplicas"], scaled["maxReplicas"]) == (3, 7)
        (metric,) = scaled["metrics"]
        assert f"as: {metric['pods']['metric']['name']}\n" in rule
        assert written["PodDisruptionBudget", name]["spec"]["selector"] == deployment["selector"]
        (container,) = deployment["template"]["spec"]["containers"]
        assert container["resources"] == {
            "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"},
            "limits": {"memory": "64Gi", "nvidia.com/gpu": "2"},
        }
    twice = export(config, "kubernetes", ExportOptions(replicas=3), tmp_path / "twice")
    assert "maxReplicas: 6\n" in twice["trial-dense.yaml"]
    cpu = export(config, "kubernetes", ExportOptions(accelerator="cpu", image="vllm-cpu:1"), tmp_path / "cpu")
    assert "nvidia.com" not in cpu["trial-dense.yaml"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"max_replicas": 1}, "--max-replicas must be at least --replicas, 2; got 1"),
        ({"cpu": "four"}, "--cpu four: it is a quantity of Kubernetes above 0"),
        ({"memory": "16GB"}, "--memory 16GB: it is a quantity"),
        ({"memory": "0Gi"}, "--memory 0Gi: it is a quantity"),
        ({"namespace": "My Space"}, "--namespace My Space: a name in Kubernetes has small letters"),
        ({"claim": "a/b"}, "--claim a/b: a name in Kubernetes"),
        ({"accelerator": "cpu"}, "--accelerator cpu: the image that is built here is vLLM's for GPUs; name another"),
        ({"accelerator": "H100"}, "--accelerator H100: Kubernetes takes cpu, or nothing for GPUs"),
    ],
)
def test_settings_of_a_pod_that_cannot_be_are_refused(
    config: Config, tmp_path: Path, option: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as refused:
        export(config, "kubernetes", ExportOptions(replicas=2, **option), tmp_path / "out")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_route_has_the_weights_and_the_deployments_the_plugin(config: Config, tmp_path: Path) -> None:
    export(config, "kubernetes", ExportOptions(), tmp_path / "out")
    by_kind_and_name = {
        (document["kind"], document["metadata"]["name"]): document for document in documents(tmp_path / "out")
    }
    (rule,) = by_kind_and_name["HTTPRoute", "trial"]["spec"]["rules"]
    assert [(backend["name"], backend["weight"]) for backend in rule["backendRefs"]] == [
        ("trial-dense", 195),
        ("trial-pruned", 5),
    ]
    for name in ("trial-dense", "trial-pruned"):
        labels = by_kind_and_name["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        assert by_kind_and_name["Service", name]["spec"]["selector"].items() <= labels.items()
        (container,) = by_kind_and_name["Deployment", name]["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
        assert container["args"][container["args"].index("--served-model-name") + 1] == "llama"
    assert container["command"] == ["vllm", "serve", "/models/pruned"]
    assert container["args"][-6:] == [
        "--load-format", "mi_prun", "--shutdown-timeout=30", "--max-model-len=256", "--tensor-parallel-size=2",
        "--no-enable-prefix-caching",
    ]  # fmt: skip
    pod = by_kind_and_name["Deployment", "trial-pruned"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 30 + int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert {"name": "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "value": "3900"} in container["env"]
    assert rule["timeouts"] == {"request": "0s"}  # an answer takes as long as it takes
    assert {"name": "VLLM_LOGGING_LEVEL", "value": "WARNING"} in container["env"]
    dense = by_kind_and_name["Deployment", "trial-dense"]["spec"]["template"]["spec"]["containers"][0]
    assert "--load-format" not in dense["args"]
    assert "mi-prun" in (tmp_path / "out" / "Dockerfile").read_text()
    assert "`/models/pruned`" in (tmp_path / "out" / "README.md").read_text()


def test_a_plan_is_served_out_of_the_dense_models_files(reference: Path, pruned: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(json.loads((pruned / "mi_prun.json").read_text())["plan"]))
    arms = {"dense": {"model": str(reference)}, "pruned": {"model": str(reference), "plan": str(plan)}}
    export(config_of(arms=arms), "kubernetes", ExportOptions(), tmp_path / "out")
    deployments = [document for document in documents(tmp_path / "out") if document["kind"] == "Deployment"]
    container = deployments[1]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["mi-prun-serve", "--model", "/models/reference", "--plan", "/models/plan.json"]
    export(config_of(arms=arms), "ray-serve", ExportOptions(), tmp_path / "ray")
    (application,) = documents(tmp_path / "ray")[0]["applications"]
    assert application["args"]["arms"]["pruned"] == {"model": "/models/reference", "plan": "/models/plan.json"}


def test_arms_that_run_in_the_cluster_are_routed_to(tmp_path: Path) -> None:
    arms = {
        "dense": {"url": "http://vllm-dense.llm.svc.cluster.local:8000"},
        "pruned": {"url": "http://vllm-pruned"},
    }
    config = config_of(arms=arms, split={"dense": 1, "pruned": 0})
    export(config, "kubernetes", ExportOptions(), tmp_path / "out")
    (route,) = documents(tmp_path / "out")
    assert route["spec"]["rules"][0]["backendRefs"] == [
        {"name": "vllm-dense", "port": 8000, "namespace": "llm", "weight": 1},
        {"name": "vllm-pruned", "port": 80, "weight": 0},
    ]
    validators(VERSIONS[-1])["HTTPRoute"].validate(route)


def test_the_ray_application(config: Config, tmp_path: Path) -> None:
    """Its shape. `make ray` runs it."""
    export(config, "ray-serve", ExportOptions(accelerator="H100", replicas=2), tmp_path / "out")
    (deployed,) = documents(tmp_path / "out")
    (application,) = deployed["applications"]
    module, _, function = application["import_path"].partition(":")
    assert f"\ndef {function}(" in (Path(*module.split(".")).with_suffix(".py")).read_text()
    ingress, dense, pruned = application["deployments"]
    assert ingress["name"] == "ingress"
    assert ingress["graceful_shutdown_timeout_s"] == dense["graceful_shutdown_timeout_s"] == 30
    assert ingress["user_config"] == {
        "weights": {"dense": 97.5, "pruned": 2.5}, "shadow_share": 0.0, "replicas": 2
    }  # fmt: skip
    assert [deployment["name"] for deployment in (dense, pruned)] == ["arm-dense", "arm-pruned"]
    assert dense["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 2, "accelerator_type": "H100"}
    assert dense["num_replicas"] == 2
    read = read_config(None, application["args"])
    assert (read.model_name, read.experiment, list(read.arms)) == ("llama", "trial", ["dense", "pruned"])
    assert read.arms["dense"] == config.arms["dense"]
    assert read.arms["pruned"] == config.arms["pruned"].model_copy(update={"model": "/models/pruned"})


def test_other_weights_are_no_other_arguments(config: Config, tmp_path: Path) -> None:
    """Ray starts every engine anew where an application's arguments change."""
    said = []
    for number, change in enumerate(({}, {"split": {"dense": 1.0}}, {"port": 9000})):
        export(config.model_copy(update=change), "ray-serve", ExportOptions(), tmp_path / str(number))
        (application,) = documents(tmp_path / str(number))[0]["applications"]
        said.append(application["args"])
    assert said[0] == said[1] == said[2]


def test_what_only_the_proxy_does_goes_to_ray(tmp_path: Path) -> None:
    arms = {
        "dense": {"url": "https://vllm.example.org", "upstream_model": "o/n", "api_key_env": "KEY"},
        "pruned": {"model": "o/n"},
    }
    config = config_of(arms=arms, model_aliases=["other"], guardrails=["error_rate<1%"], shadow={"in_flight": 2})
    export(config, "ray-serve", ExportOptions(), tmp_path / "out")
    (application,) = documents(tmp_path / "out")[0]["applications"]
    read = read_config(None, application["args"])
    assert read.model_copy(update={"split": config.split}) == config
    assert [deployment["name"] for deployment in application["deployments"]] == ["ingress", "arm-pruned"]


@pytest.mark.parametrize("target", ["kubernetes", "ray-serve"])
def test_the_cluster_places_gpus(target: str, tmp_path: Path) -> None:
    env = {**ENV, **dict.fromkeys(DEVICES, "1")}
    export(config_of(arms={"dense": {"model": "o/n", "env": env}}), target, ExportOptions(), tmp_path / "out")
    text = "".join(path.read_text() for path in sorted((tmp_path / "out").glob("*.yaml")))
    assert "VLLM_LOGGING_LEVEL" in text
    assert "VISIBLE_DEVICES" not in text


@pytest.mark.parametrize(
    ("target", "arms", "said"),
    [
        ("kubernetes", {"dense": {"url": "http://10.0.0.1:8000"}}, "is no Service of the cluster"),
        ("kubernetes", {"dense": {"url": "https://vllm:8000"}}, "is no Service of the cluster"),
        ("kubernetes", {"a-b": {"model": "o/n"}, "a_b": {"model": "o/n"}}, "names are alike in Kubernetes"),
        ("kubernetes", {"dense": {"model": "./nothing"}}, "no such folder"),
        ("kubernetes", {"dense": {"model": "o/n", "flags": ["--api-key", "secret-key"]}}, "belongs into a Secret"),
        ("kubernetes", {"dense": {"model": "o/n", "flags": ["-tp", "2"]}}, "is no flag in full"),
        ("kubernetes", {"dense": {"model": "o/n", "flags": ["--port", "2"]}}, "--port cannot be exported"),
        (
            "kubernetes",
            {"dense": {"model": "o/n", "flags": ["--lora-modules", "a=o/b", f"sql={Path(__file__).parent}"]}},
            f"--lora-modules names {Path(__file__).parent}, a file of this machine",
        ),
        (
            "ray-serve",
            {"dense": {"model": "o/n", "flags": ["--speculative-config", json.dumps({"model": __file__})]}},
            f"--speculative-config names {__file__}, a file of this machine",
        ),
        ("kubernetes", {"dense": {"url": "http://localhost:8000"}}, "is no Service of the cluster"),
        ("kubernetes", {"dense": {"url": "http://example.com"}}, "is no Service of the cluster"),
        (
            "ray-serve",
            {"dense": {"model": "o/n", "flags": ["--adapter=a"]}},
            "--adapter cannot be exported: it is a file",
        ),
        (
            "kubernetes",
            {"dense": {"model": "o/n", "env": {"HF_TOKEN": "secret-key"}}},
            "env HF_TOKEN looks like a secret",
        ),
        ("ray-serve", {"dense": {"model": "o/n", "env": {"My_Password": "secret-key"}}}, "looks like a secret"),
        ("ray-serve", {"dense": {"model": "o/n", "env": {"AWS_SECRET_ACCESS_KEY": "secret-key"}}}, "like a secret"),
        ("ray-serve", {"dense": {"model": "o/n", "flags": ["--hf-token", "secret-key"]}}, "belongs into a Secret"),
        ("ray-serve", {"dense": {"model": "o/n", "flags": ["--tensor-parallel-size", "x"]}}, "must be a number"),
        (
            "kubernetes",
            {"dense": {"model": "o/n", "flags": ["--max-model-len", "4096", "-tp", "2"]}},
            "'-tp' is no flag in full",
        ),
        ("kubernetes", {"dense": {"model": "o/n", "flags": ["--middleware=a", "--middleware", "b"]}}, "there twice"),
        ("kubernetes", {"dense": {"url": "http://vllm:8000", "upstream_model": "o/n"}}, "are the proxy's doing"),
        ("kubernetes", {"dense": {"url": "http://vllm:8000", "api_key_env": "KEY"}}, "are the proxy's doing"),
    ],
)
def test_what_a_cluster_cannot_have_is_refused_before_anything_is_written(
    tmp_path: Path, target: str, arms: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as refused:
        export(config_of(arms=arms), target, ExportOptions(), tmp_path / "out")
    assert said in str(refused.value)
    assert "secret-key" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_names_of_the_model(tmp_path: Path) -> None:
    named = config_of(arms={"dense": {"model": "o/n"}}, model_aliases=["other"])
    texts = export(named, "kubernetes", ExportOptions(), tmp_path / "kubernetes")
    (text,) = [text for text in texts.values() if "--served-model-name" in text]
    assert f"--served-model-name\n        - {named.model_name}\n        - other\n" in text
    unnamed = named.model_copy(update={"model_name": ""})
    with pytest.raises(UserError, match="model_name is missing"):
        export(unnamed, "kubernetes", ExportOptions(), tmp_path / "unnamed")


def test_a_virtual_folder_points_to_this_machine(prune: Callable[..., Path], reference: Path, tmp_path: Path) -> None:
    virtual = prune(reference, tmp_path / "virtual", [1], virtual=True)
    with pytest.raises(UserError, match="apply the plan without --virtual"):
        export(config_of(arms={"p": {"model": str(virtual)}}), "kubernetes", ExportOptions(), tmp_path / "out")


def test_two_arms_that_would_be_one_folder_in_the_cluster_are_refused(reference: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(reference, tmp_path / name / "same")
    arms = {name: {"model": str(tmp_path / name / "same")} for name in ("a", "b")}
    with pytest.raises(UserError, match=r"would both be /models/same in the cluster; rename one"):
        export(config_of(arms=arms), "kubernetes", ExportOptions(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    twice = {name: {"model": str(tmp_path / "a" / "same")} for name in ("a", "b")}  # one model, other flags
    export(config_of(arms=twice), "kubernetes", ExportOptions(), tmp_path / "out")


def test_a_plan_of_a_hub_model_at_its_commit_is_exported(pruned: Path, tmp_path: Path) -> None:
    """`mi-prun-serve --plan` takes owner/name@COMMIT, though vLLM itself does not."""
    plan = json.loads((pruned / "mi_prun.json").read_text())["plan"]
    plan["dense"]["name"] = "owner/name@0123456789abcdef"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    export(
        config_of(arms={"p": {"plan": str(tmp_path / "plan.json")}}), "kubernetes", ExportOptions(), tmp_path / "out"
    )
    command = next(d for d in documents(tmp_path / "out") if d["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert command["containers"][0]["command"] == [
        *("mi-prun-serve", "--model", "owner/name@0123456789abcdef", "--plan", "/models/plan.json")
    ]


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["--chat-template", "{% for m in messages %}"], ["--chat-template={% for m in messages %}"]),
        (["--compilation-config", '{"level": 3'], ['--compilation-config={"level": 3']),
        (["--revision", "2024-01-01"], ["--revision=2024-01-01"]),
        (["--language=no"], ["--language=no"]),
        (["--revision", "5e12345"], ["--revision=5e12345"]),
        (["--gpu-memory-utilization", ".9"], ["--gpu-memory-utilization=0.9"]),
        (["--flag", "False"], ["--no-flag"]),
        (["--seed=00123"], ["--seed=00123"]),
        (["--reasoning-parser="], ["--reasoning-parser="]),
        (["--allowed-origins", '["https://x"]'], ['--allowed-origins=["https://x"]']),
        (["--seed", "-1"], ["--seed=-1"]),
        (["--lora-modules", '{"name": "a"}', '{"name": "b"}'], ["--lora-modules", '{"name": "a"}', '{"name": "b"}']),
        (["--flag", "true"], ["--flag"]),
        (["--speculative_config.num_speculative_tokens", "3"], ["--speculative-config.num_speculative_tokens=3"]),
        (["--compilation-config.a-b.c_d=true"], ["--compilation-config.a-b.c_d=true"]),
        (["--no-flag"], ["--no-flag"]),
    ],
)
def test_flags_are_written_as_they_were_said(words: list[str], again: list[str]) -> None:
    assert _words(parse_flags(words, origin="arm x")) == again


def test_flags_become_arguments() -> None:
    words = [
        "--enforce-eager", "--dtype=half", "--allowed-origins", "a", "b", "--hf-overrides", '{"a": 1}',
        "--swap-space", "1.5",
    ]  # fmt: skip
    assert parse_flags(words, origin="arm x") == {
        "enforce_eager": True,
        "dtype": "half",
        "allowed_origins": ["a", "b"],
        "hf_overrides": {"a": 1},
        "swap_space": 1.5,
    }


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ({"a": 95, "b": 5}, {"a": 95, "b": 5}),
        ({"a": 0.975, "b": 0.025}, {"a": 39, "b": 1}),
        ({"a": 1.0, "b": 0.0}, {"a": 1, "b": 0}),
        ({"a": 1e6, "b": 1.0}, {"a": 1_000_000, "b": 1}),
        ({"a": 0.99996, "b": 0.00004}, {"a": 1_000_000, "b": 40}),
        ({"a": 99.995, "b": 0.005}, {"a": 19_999, "b": 1}),
        ({"a": 1 / 3, "b": 2 / 3}, {"a": 1, "b": 2}),
    ],
)
def test_weights_become_whole_numbers(weights: dict[str, float], whole: dict[str, int]) -> None:
    exported_weights = whole_weights(weights)
    assert {name: exported_weights[name] * sum(whole.values()) for name in whole} == {
        name: pytest.approx(whole[name] * sum(exported_weights.values()), rel=1e-6) for name in whole
    }
    assert all(0 <= weight <= 1_000_000 for weight in exported_weights.values())


def test_a_weight_too_small_for_a_route_is_refused() -> None:
    with pytest.raises(UserError, match=r"arm b: its weight is 4e-07 of the largest one, .* down to 1e-06; take 0"):
        whole_weights({"a": 99.99996, "b": 0.00004})


def test_files_of_this_machine_do_not_go_to_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(
        arms={"dense": {"model": "o/n"}}, api_keys_file="api.keys", admin_key_file="admin.key", access_log="ab.log"
    )
    text = export(config, "ray-serve", ExportOptions(), tmp_path / "out")["serve.yaml"]
    assert not any(word in text for word in ("api.keys", "admin.key", "ab.log", "_file", "access_log"))
    said = capsys.readouterr().err
    assert "api_keys_file api.keys is left out: it is a file of this machine; on Ray keys come from" in said
    assert said.count("is left out") == 3


def test_a_folder_of_models_in_the_cluster_is_a_whole_path(config: Config, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="--model-root must be an absolute path in the cluster, like /models, got models"
    ):
        export(config, "kubernetes", ExportOptions(model_root="models"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(pruned: Path, tmp_path: Path) -> None:
    file = tmp_path / "ab.toml"
    file.write_text(f'model_name = "llama"\n[arms.dense]\nmodel = "o/n"\n[arms.pruned]\nmodel = "{pruned}"\n')

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [
            sys.executable,
            "-m",
            "serve.ab.cli",
            "export",
            "--config",
            str(file),
            "-o",
            str(tmp_path / "out"),
            *words,
        ]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    done = command("--to", "kubernetes", "--", "--max-model-len", "128")
    assert done.returncode == 0, done.stderr
    assert "default-pruned.yaml" in done.stdout
    assert "--max-model-len=128" in (tmp_path / "out" / "default-dense.yaml").read_text()
    again = command("--to", "ray-serve")
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "exists and is not empty" in again.stderr
    assert command("--to", "ray-serve", "--force").returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "serve.yaml"]
