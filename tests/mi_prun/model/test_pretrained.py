"""What transformers makes of a folder: its own config object, and a tokenizer or a refusal in one line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.model.pretrained import library_errors, pretrained_config, special_floats


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def tokenizer_json(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer.json", lambda data: data.update(changes))


def tokenizer_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer_config.json", lambda data: data.update(changes))


def future_model(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda data: data["model"].update(type="Future"))


def class_without_its_file(folder: Path) -> None:
    """transformers then makes an empty tokenizer, which makes no token of any text."""
    tokenizer_config(tokenizer_class="LlamaTokenizer")(folder)
    (folder / "tokenizer.json").unlink()


FAULTS: dict[str, Callable[[Path], object]] = {
    "model type of another release": future_model,
    "step of another release": tokenizer_json(pre_tokenizer={"type": "Future"}),
    "version of another release": tokenizer_json(version="9.0"),
    "cut off": lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "mod'),
    "not text": lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00"),
    "no object": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "class without its file": class_without_its_file,
    "class of another kind": tokenizer_config(tokenizer_class="T5Tokenizer"),
    "class that is a number": tokenizer_config(tokenizer_class=7),
    "length that is text": tokenizer_config(model_max_length=""),
    "token that is a number": tokenizer_config(bos_token=7),
    "config that is a list": lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
    "config that is cut off": lambda folder: (folder / "tokenizer_config.json").write_text("{"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tokenizer_that_cannot_be_used_is_one_line(reference: Path, tmp_path: Path, fault: str) -> None:
    folder = Path(shutil.copytree(reference, tmp_path / "model"))
    assert len(open_model(folder).tokenizer) == 4096
    FAULTS[fault](folder)
    model = open_model(folder)
    with pytest.raises(UserError, match="has no usable tokenizer: ") as refused:
        _ = model.tokenizer
    said = str(refused.value)
    assert "\n" not in said
    assert str(folder) in said
    assert "tokenizer.json and tokenizer_config.json must be the model's own, and readable by transformers 5" in said


def test_a_folder_without_a_tokenizer_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="has no usable tokenizer"):
        _ = open_model(tiny("llama")).tokenizer


def test_a_token_without_a_row_is_named(reference: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reference, tmp_path / "model"))
    token = {"id": 4096, "content": "<|im_start|>", "special": True}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    edit(folder / "tokenizer.json", lambda data: data["added_tokens"].append(token))
    model = open_model(folder)
    ids = model.tokenizer("In the year<|im_start|>")["input_ids"]
    with pytest.raises(UserError, match=r"token 4096 of its tokenizer \('<\|im_start\|>'\), .* has 4096 rows"):
        model.check_tokens(torch.tensor([ids]))
    model.check_tokens(torch.tensor([ids[:-1]]))


MISTRAL = {"layer_types": ["full_attention", "sliding_attention"] * 3, "sliding_window": 8}


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("llama", {}), ("gemma2", {"head_dim": 8}), ("qwen3", {"head_dim": 8}), ("mistral", {}), ("mistral", MISTRAL)],
)
def test_the_config_is_the_one_that_transformers_reads(
    tiny: Callable[..., Path], model_type: str, fields: dict[str, Any]
) -> None:
    folder = tiny(model_type)
    edit(folder / "config.json", lambda data: data.update(fields))
    model = open_model(folder)
    config, read = model.pretrained_config, AutoConfig.from_pretrained(folder)
    assert type(config) is type(read)
    assert config.to_dict() | {"_name_or_path": ""} == read.to_dict() | {"_name_or_path": ""}
    assert model.config == json.loads((folder / "config.json").read_text())


def test_what_a_library_raises_is_one_line() -> None:
    class PanicException(BaseException):
        pass

    for error in (Exception("\nfirst\nsecond"), PanicException("first")):
        with pytest.raises(UserError, match=r"^model m: first; do this$"), library_errors("model m", "do this"):
            raise error
    with pytest.raises(UserError, match=r"^model m: KeyError: 'first'; do this$"), library_errors("model m", "do this"):
        raise KeyError("first")
    with pytest.raises(KeyboardInterrupt), library_errors("model m"):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"^ours$"), library_errors("model m"):
        raise UserError("ours")
    with pytest.raises(UserError, match=r"config\.json of x cannot be loaded by transformers: "):
        pretrained_config({"model_type": "llama", "hidden_size": "32"}, "config.json of x")


def test_infinities_and_nan_are_read_as_transformers_writes_them() -> None:
    written = {"limits": [0.0, {"__float__": "Infinity"}], "deep": {"low": {"__float__": "-Infinity"}}, "text": "NaN"}
    assert special_floats(written) == {"limits": [0.0, math.inf], "deep": {"low": -math.inf}, "text": "NaN"}
    assert math.isnan(special_floats({"__float__": "NaN"}))
    assert special_floats({"__float__": "1"}) == {"__float__": "1"}
