"""Do the two ends of the range of vLLM versions have what we use of them? By their source alone: nothing is run.

    python requirements/check_vllm.py                    downloads the wheels (250 and 340 MB) into a temporary folder
    python requirements/check_vllm.py vllm-0.25.1-*.whl  checks wheels that are there

Checked are every `from vllm... import ...` of our packages, the alternatives of `vllm_ext/compat.py`, and the
parameters of what we call or override. Exit status 1 where something does not fit. Not a part of the tests: the tests
run on the one version that is installed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vllm_ext import compat  # noqa: E402 - found through the line above

ENDS = ("0.25.1", "0.33.0")
PACKAGES = ("vllm_ext", "serve", "bench")
LOADERS = "vllm.model_executor.model_loader"

# What compat looks up in the first module of a tuple that is there.
ALTERNATIVES: dict[tuple[str, ...], tuple[str, ...]] = {
    compat.SERVER_MODULES: ("run_server", "build_app"),
    compat.ARGUMENTS_MODULES: ("make_arg_parser", "validate_parsed_serve_args"),
    compat.PARSER_MODULES: ("FlexibleArgumentParser",),
    compat.LORA_MANAGER_MODULES: ("WorkerLoRAManager",),
}
# (module, name): parameters that we pass, in this order, or that our override has.
SIGNATURES: dict[tuple[str, str], tuple[str, ...]] = {
    (LOADERS, "register_model_loader"): ("load_format",),
    (LOADERS, "get_model"): ("vllm_config", "prefix"),
    (f"{LOADERS}.base_loader", "BaseModelLoader.load_model"): ("self", "vllm_config", "model_config", "prefix"),
    (f"{LOADERS}.default_loader", "DefaultModelLoader.__init__"): ("self", "load_config"),
    (f"{LOADERS}.default_loader", "DefaultModelLoader.download_model"): ("self", "model_config"),
    (f"{LOADERS}.default_loader", "DefaultModelLoader.load_weights"): ("self", "model", "model_config"),
    (f"{LOADERS}.default_loader", "DefaultModelLoader.get_all_weights"): ("self", "model_config", "model"),
    (f"{LOADERS}.default_loader", "DefaultModelLoader._get_weights_iterator"): ("self", "source"),
    (f"{LOADERS}.ep_weight_filter", "should_skip_weight"): ("weight_name", "local_expert_ids"),
    (f"{LOADERS}.utils", "initialize_model"): ("vllm_config", "prefix", "model_config"),
    ("vllm.model_executor.models.utils", "is_pp_missing_parameter"): ("name", "model"),
    ("vllm.utils.torch_utils", "set_default_torch_dtype"): ("dtype",),
    ("vllm.lora.worker_manager", "WorkerLoRAManager.__init__"): ("self", "vllm_config"),
    ("vllm.lora.worker_manager", "WorkerLoRAManager._load_adapter"): ("self", "lora_request"),
    ("vllm.lora.utils", "get_adapter_absolute_path"): ("lora_path",),
    ("vllm.v1.sample.rejection_sampler", "apply_sampling_constraints"): (
        "logits",
        "cu_num_draft_tokens",
        "sampling_metadata",
    ),
    ("vllm.v1.sample.rejection_sampler", "expand_batch_to_tokens"): (
        "x",
        "cu_num_tokens",
        "num_tokens",
        "replace_from",
        "replace_to",
    ),
    ("vllm.v1.spec_decode.draft_model", "DraftModelProposer._get_model"): ("self",),
}
# (module, class): names that are set in it.
MEMBERS: dict[tuple[str, str], tuple[str, ...]] = {
    (f"{LOADERS}.default_loader", "DefaultModelLoader"): ("counter_before_loading_weights",),
    ("vllm.config.load", "LoadConfig"): ("load_format",),
    ("vllm.config.speculative", "SpeculativeConfig"): (
        "method",
        "model",
        "num_speculative_tokens",
        "draft_model_config",
    ),
    ("vllm.engine.arg_utils", "EngineArgs"): (
        "load_format",
        "served_model_name",
        "revision",
        "hf_config_path",
        "hf_overrides",
        "speculative_config",
        "pipeline_parallel_size",
        "disable_hybrid_kv_cache_manager",
    ),
}
# Text that must stand in a module: what is decided by a value, not by a name.
TEXTS: dict[str, tuple[str, ...]] = {
    f"{LOADERS}.default_loader": ("self.local_expert_ids", '"secondary_weights"'),
    f"{LOADERS}.base_loader": ("self.load_weights(model, model_config)",),
    "vllm.config.speculative": ('"draft_model"',),
    "vllm.plugins": ("vllm.general_plugins",),
    "vllm.v1.worker.gpu_model_runner": ("self.drafter.load_model(self.model)",),
    "vllm.v1.engine.core": ("except SystemExit",),  # no stack trace for it
    "vllm.v1.spec_decode.metrics": tuple(
        f'"vllm:spec_decode_num_{name}"' for name in ("drafts", "draft_tokens", "accepted_tokens")
    ),
    "vllm.benchmarks.datasets.datasets": (
        *('"--dataset-path"', '"--custom-output-len"', '"--disable-shuffle"', '"--skip-chat-template"'),
        '== "custom"',
    ),
    "vllm.benchmarks.serve": ('"--temperature"', "--ignore-eos"),
}


class Wheel:
    """The Python source in a wheel."""

    def __init__(self, path: Path) -> None:
        self.version = path.name.split("-")[1]
        self._archive = zipfile.ZipFile(path)
        self._names = set(self._archive.namelist())

    def text(self, module: str) -> str | None:
        """The source of a module, None where it is not there."""
        place = module.replace(".", "/")
        for name in (f"{place}.py", f"{place}/__init__.py"):
            if name in self._names:
                return self._archive.read(name).decode()
        return None

    def body(self, module: str) -> list[ast.stmt] | None:
        text = self.text(module)
        return None if text is None else ast.parse(text).body

    def has(self, module: str, name: str) -> bool:
        body = self.body(module)
        return (body is not None and name in set(names_of(body))) or self.text(f"{module}.{name}") is not None


def names_of(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that a module or class binds at its top level, in `if` and `try` too."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=found) | ast.ImportFrom(names=found):
                yield from (alias.asname or alias.name.split(".")[0] for alias in found)
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If(body=inner, orelse=other):
                yield from names_of([*inner, *other])
            case ast.Try(body=inner, handlers=handlers):
                yield from names_of([*inner, *(statement for handler in handlers for statement in handler.body)])


def find(body: Sequence[ast.stmt], path: str) -> ast.stmt | None:
    """A function or class by its dotted name."""
    first, _, rest = path.partition(".")
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == first:
            if not rest:
                return node
            return find(node.body, rest) if isinstance(node, ast.ClassDef) else None
    return None


def our_imports() -> set[tuple[str, str]]:
    """(module, name) of each import of vLLM in our packages."""
    found = set()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                    found |= {(node.module or "", alias.name) for alias in node.names}
    return found


def faults(wheel: Wheel) -> Iterator[str]:
    for module, name in sorted(our_imports()):
        if not wheel.has(module, name):
            yield f"from {module} import {name}: not there"
    for modules, names in ALTERNATIVES.items():
        first = next((module for module in modules if wheel.text(module) is not None), None)
        if first is None:
            yield f"none of {', '.join(modules)} is there"
            continue
        yield from (f"{first} has no {name}" for name in names if not wheel.has(first, name))
    for (module, path), wanted in SIGNATURES.items():
        node = find(wheel.body(module) or [], path)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{module}: {path} is not there"
            continue
        yield from signature_faults(f"{module}: {path}", node.args, wanted)
    for (module, path), names in MEMBERS.items():
        node = find(wheel.body(module) or [], path)
        if not isinstance(node, ast.ClassDef):
            yield f"{module}: {path} is not there"
            continue
        members = set(names_of(node.body))
        yield from (f"{module}: {path} has no {name}" for name in names if name not in members)
    for module, texts in TEXTS.items():
        yield from (f"{module} has no {text}" for text in texts if text not in (wheel.text(module) or ""))


def signature_faults(what: str, arguments: ast.arguments, wanted: Sequence[str]) -> Iterator[str]:
    """Each wanted parameter must be there, and no other one may be without a default."""
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    required = positional[: len(positional) - len(arguments.defaults)]
    required += [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
    known = [*positional, *(argument.arg for argument in arguments.kwonlyargs)]
    yield from (f"{what} has no parameter {name}, but {known}" for name in wanted if name not in known)
    yield from (f"{what} needs {name}, which we do not give" for name in required if name not in wanted)


def download(folder: Path) -> list[Path]:
    """The wheels of both ends, whatever this machine is."""
    for version in ENDS:
        options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
        options += [f"--platform=manylinux_2_{glibc}_x86_64" for glibc in (17, 28, 31, 35)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, f"vllm=={version}", "-d", str(folder)]
        subprocess.run(command, check=True)
    return sorted(folder.glob("vllm-*.whl"))


def main(paths: list[Path]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        wheels = [Wheel(path) for path in paths or download(Path(folder))]
        checks = len(our_imports()) + len(ALTERNATIVES) + len(SIGNATURES) + len(MEMBERS) + len(TEXTS)
        wrong = 0
        for wheel in wheels:
            found = list(faults(wheel))
            wrong += len(found)
            print(f"vllm {wheel.version}: {checks} checks, {len(found)} faults")
            for fault in found:
                print(f"  {fault}")
    return 1 if wrong or not wheels else 0


if __name__ == "__main__":
    sys.exit(main([Path(word) for word in sys.argv[1:]]))
