"""`mi-prun-ab export`: what is written, checked against published schemas, and what is refused."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mi_prun.errors import UserError
from serve.ab.config import Config
from serve.ab.export.check_ray import check
from serve.ab.export.export import export
from serve.ab.export.exported_arm import DEVICES, ExportOptions, parse_flags
from serve.ab.export.kubernetes import _words, whole_weights

SCHEMAS = Path(__file__).with_name("schemas")
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


def validators() -> dict[str, jsonschema.protocols.Validator]:
    core = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())
    gateway = json.loads((SCHEMAS / "gateway-api-1.0.json").read_text())
    validators = {
        kind: jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": core["$defs"]})
        for kind in ("Deployment", "Service")
    }
    for kind in ("HTTPRoute", "Gateway"):
        schema = strict(gateway["$defs"][kind])
        schema["properties"]["metadata"] = {"type": "object"}
        validators[kind] = jsonschema.Draft202012Validator(schema)
    return validators


def test_kubernetes_manifests_fit_the_published_schemas(config: Config, tmp_path: Path) -> None:
    options = ExportOptions(gateway_class="eg", namespace="llm", replicas=2)
    export(config, "kubernetes", options, tmp_path / "out")
    written = documents(tmp_path / "out")
    assert sorted(document["kind"] for document in written) == [
        "Deployment", "Deployment", "Gateway", "HTTPRoute", "Service", "Service"
    ]  # fmt: skip
    for document in written:
        validators()[document["kind"]].validate(document)
        assert document["metadata"]["namespace"] == "llm"


def test_a_misspelt_field_would_be_found(config: Config, tmp_path: Path) -> None:
    export(config, "kubernetes", ExportOptions(gateway_class="eg"), tmp_path / "out")
    for document in documents(tmp_path / "out"):
        document["spec"]["misspelt"] = 1
        with pytest.raises(jsonschema.ValidationError):
            validators()[document["kind"]].validate(document)


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
    assert container["args"][-5:] == [
        "--load-format", "mi_prun", "--max-model-len=256", "--tensor-parallel-size=2", "--no-enable-prefix-caching"
    ]  # fmt: skip
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
    _, _, _, deployment, _ = documents(tmp_path / "out")  # a route, then a Deployment and a Service for each arm
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["mi-prun-serve", "--model", "/models/reference", "--plan", "/models/plan.json"]
    with pytest.raises(UserError, match="arm pruned is a plan: Ray Serve opens folders"):
        export(config_of(arms=arms), "ray-serve", ExportOptions(), tmp_path / "ray")
    assert not (tmp_path / "ray").exists()


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
    validators()["HTTPRoute"].validate(route)


def test_the_ray_application(config: Config, tmp_path: Path) -> None:
    """Its shape; `docs/how-to/ab-on-a-cluster.md` says how it was checked with Ray itself."""
    export(config, "ray-serve", ExportOptions(accelerator="H100"), tmp_path / "out")
    (deployed,) = documents(tmp_path / "out")
    (application,) = deployed["applications"]
    module, _, function = application["import_path"].partition(":")
    code = ast.parse((tmp_path / "out" / f"{module}.py").read_text())
    assert function in {node.name for node in code.body if isinstance(node, ast.FunctionDef)}
    arguments = application["args"]
    assert arguments["weights"] == {"dense": 97.5, "pruned": 2.5}
    ids = [arm["model_loading_config"]["model_id"] for arm in arguments["llm_configs"]]
    assert ids == ["llama@dense", "llama@pruned"]
    dense, pruned = arguments["llm_configs"]
    assert dense["engine_kwargs"] == {
        "max_model_len": 256, "tensor_parallel_size": 2, "enable_prefix_caching": False
    }  # fmt: skip
    assert pruned["engine_kwargs"]["load_format"] == "mi_prun"
    assert pruned["accelerator_type"] == "H100"
    assert pruned["runtime_env"]["env_vars"]["VLLM_LOGGING_LEVEL"] == "WARNING"


@pytest.mark.parametrize("target", ["kubernetes", "ray-serve"])
def test_the_cluster_places_gpus(target: str, tmp_path: Path) -> None:
    env = {**ENV, **dict.fromkeys(DEVICES, "1")}
    export(config_of(arms={"dense": {"model": "o/n", "env": env}}), target, ExportOptions(), tmp_path / "out")
    text = "".join(path.read_text() for path in sorted((tmp_path / "out").glob("*.yaml")))
    assert "VLLM_LOGGING_LEVEL" in text
    assert "VISIBLE_DEVICES" not in text


def test_ray_itself_reads_the_application_where_it_is_installed(config: Config, tmp_path: Path) -> None:
    export(config, "ray-serve", ExportOptions(), tmp_path / "out")
    if importlib.util.find_spec("ray"):
        assert check(tmp_path / "out").endswith("takes trial")
    else:
        with pytest.raises(UserError, match=r"nothing is checked: pip install 'ray\[serve,llm\]' first"):
            check(tmp_path / "out")
    with pytest.raises(UserError, match=r"has no serve\.yaml"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("target", "arms", "said"),
    [
        ("ray-serve", {"dense": {"url": "http://10.0.0.1:8000"}}, "Ray Serve starts its own engines"),
        ("kubernetes", {"dense": {"url": "http://10.0.0.1:8000"}}, "is no Service of the cluster"),
        ("kubernetes", {"dense": {"url": "https://vllm:8000"}}, "is no Service of the cluster"),
        ("kubernetes", {"a-b": {"model": "o/n"}, "a_b": {"model": "o/n"}}, "names are alike in Kubernetes"),
        ("kubernetes", {"dense": {"model": "./nothing"}}, "no such folder"),
        ("kubernetes", {"dense": {"model": "o/n", "flags": ["--api-key", "secret-key"]}}, "belongs into a Secret"),
        ("kubernetes", {"dense": {"model": "o/n", "flags": ["-tp", "2"]}}, "is no flag in full"),
        ("kubernetes", {"dense": {"model": "o/n", "flags": ["--port", "2"]}}, "--port cannot be exported"),
        (
            "kubernetes",
            {"dense": {"model": "o/n", "env": {"HF_TOKEN": "secret-key"}}},
            "env HF_TOKEN looks like a secret",
        ),
        ("ray-serve", {"dense": {"model": "o/n", "env": {"My_Password": "secret-key"}}}, "looks like a secret"),
        ("ray-serve", {"dense": {"model": "o/n", "env": {"AWS_SECRET_ACCESS_KEY": "secret-key"}}}, "like a secret"),
        ("ray-serve", {"dense": {"model": "o/n", "flags": ["--hf-token", "secret-key"]}}, "belongs into a Secret"),
        ("ray-serve", {"dense": {"model": "o/n", "flags": ["--tensor-parallel-size", "x"]}}, "must be a number"),
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
    with pytest.raises(UserError, match="model_aliases: Ray Serve serves a model under one name"):
        export(named, "ray-serve", ExportOptions(), tmp_path / "ray")
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
        (["--lora-modules", '{"name": "a"}', '{"name": "b"}'], ["--lora-modules", '{"name": "a"}', '{"name": "b"}']),
        (["--flag", "true"], ["--flag"]),
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
        ({"a": 1e6, "b": 1e-3}, {"a": 1_000_000, "b": 1}),
        ({"a": 1 / 3, "b": 2 / 3}, {"a": 1, "b": 2}),
    ],
)
def test_weights_become_whole_numbers(weights: dict[str, float], whole: dict[str, int]) -> None:
    exported_weights = whole_weights(weights)
    assert {name: exported_weights[name] * sum(whole.values()) for name in whole} == {
        name: pytest.approx(whole[name] * sum(exported_weights.values()), rel=1e-6) for name in whole
    }
    assert all(0 <= weight <= 1_000_000 for weight in exported_weights.values())


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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "ab_app.py", "serve.yaml"]
