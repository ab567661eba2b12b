"""What the modelling code itself ties to a block's index: every such config field is handled or refused by name.

transformers' and vLLM's sources are read, not run: wherever an index of blocks meets a config field in a comparison, a
sum, a remainder or a look-up, that field must be in the family's row or be refused by the field guard. A new version
that ties another field to the index fails here.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from mi_prun.architecture.architecture import FAMILIES
from mi_prun.architecture.field_guard import check_fields
from mi_prun.errors import UserError

INDICES = {"layer_idx", "layer_id", "layer_index", "layer_number", "global_layer_idx", "idx", "i"}
HOLDERS = {"config", "text_config", "hf_config"}
NOT_TIED = {
    "get_nemotron_h_config_for_layer",  # a method of another class's config, which `architectures` keeps out
    "num_logits_to_keep",  # counts positions of the sequence
}


def sources_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def transformers_files(model_type: str) -> list[Path]:
    from transformers import AutoConfig

    module = type(AutoConfig.for_model(model_type)).__module__.split(".")[2]
    folder = sources_of("transformers") / "models" / module
    return [folder / f"modeling_{module}.py", folder / f"configuration_{module}.py"]


def vllm_files(architecture: str) -> list[Path]:
    root = sources_of("vllm")
    if root is None:
        return []
    models = root / "model_executor" / "models"
    module = re.search(rf'"{architecture}": \(\s*"([\w.]+)"', (models / "registry.py").read_text())
    if not module or module[1] == "transformers":  # transformers' own modelling code runs there
        return []
    return [models / f"{module[1]}.py"]


def field_of(node: ast.AST, holders: set[str]) -> str | None:
    """`config.x`, `self.config.x` and `getattr(config, "x", ...)` name the field x; in a config class `self.x` too."""
    if isinstance(node, ast.Attribute):
        holder = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
        return node.attr if holder in holders else None
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr" and len(node.args) > 1:
        return node.args[1].value if isinstance(node.args[1], ast.Constant) else None
    return None


def name_of(node: ast.AST) -> str | None:
    """`x` and `self.x`."""
    return getattr(node, "id", None) or getattr(node, "attr", None)


def tied_to_the_index(code: str, holders: set[str]) -> set[str]:
    """Fields that stand in one comparison, sum, remainder or look-up with an index of blocks."""
    tree = ast.parse(code)
    aliases: dict[str | None, str] = {}  # after `self.step = config.x`, `step` is another name of x
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (field := field_of(node.value, holders)):
            aliases |= {name_of(target): field for target in node.targets}
    fields = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.Compare | ast.Subscript):
            inner = list(ast.walk(node))
            if any(name_of(part) in INDICES for part in inner):
                fields |= {field_of(part, holders) or aliases.get(name_of(part)) for part in inner}
    return {field for field in fields if field} - INDICES


def fields_of(model_type: str) -> set[str]:
    fields: set[str] = set()
    for file in (*transformers_files(model_type), *vllm_files(FAMILIES[model_type].architecture)):
        holders = HOLDERS | ({"self"} if file.name.startswith("configuration_") else set())
        fields |= tied_to_the_index(file.read_text(), holders)
    return fields


@pytest.mark.parametrize("model_type", sorted(name for name, family in FAMILIES.items() if family.text is None))
def test_a_field_tied_to_the_index_is_known_or_refused(model_type):
    family = FAMILIES[model_type]
    known = {*family.slice_fields, *family.removed_fields, *family.known_fields, *family.count_fields}
    for field in fields_of(model_type) - known - NOT_TIED:
        with pytest.raises(UserError, match=repr(field)):
            check_fields({field: 3}, family, 8)


def test_the_code_is_really_read():
    """Fields that are known to be tied to the index, as they are written in the two engines' sources."""
    for model_type, fields in {
        "qwen2": {"max_window_layers", "layer_types"},
        "qwen2_moe": {"decoder_sparse_step", "mlp_only_layers", "max_window_layers"},
        "deepseek_v3": {"first_k_dense_replace"},
        "smollm3": {"no_rope_layers", "no_rope_layer_interval"},
        "llama4_text": {"moe_layers", "no_rope_layers"},
    }.items():
        assert fields <= fields_of(model_type)
    if sources_of("vllm") is not None:
        assert {"moe_layer_freq", "index_topk_freq"} <= fields_of("deepseek_v3")
        assert "interleave_moe_layer_step" in fields_of("llama4_text")
        assert "layer_rope_theta" in fields_of("granite")


@pytest.mark.parametrize(
    "code",
    [
        "x = config.every if layer_idx % config.every == 0 else 1",
        "step = config.every\nuse = (self.layer_idx + 1) % step == 0",
        "self.step = getattr(config, 'every', 2)\nuse = i // self.step",
        "scale = config.every[layer_id]",
        "use = layer_idx in self.config.every",
    ],
)
def test_ways_to_tie_a_field_to_the_index(code):
    assert tied_to_the_index(code, HOLDERS) == {"every"}
