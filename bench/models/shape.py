"""Make models for speed and memory only: a shape is a real config with weights that mean nothing.

vLLM fills the weights itself (`--load-format dummy`). On disk it needs a config and a tokenizer. The tokenizer is made
here, with a word for each id: a prompt of n tokens is n tokens whichever vocabulary the shape has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mi_prun.architecture.architecture import Config, family_of, num_blocks, reduce_config
from mi_prun.errors import UserError
from mi_prun.files import new_folder, read_json_object, sync
from mi_prun.model.model_folder import read_config

TOKENIZER = "tokenizer"

_LLAMA: Config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 500000.0}
_QWEN2: Config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000.0}
_QWEN3: Config = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "rope_theta": 1000000.0,
    "head_dim": 128,
}
_MISTRAL: Config = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}


def _sizes(
    base: Config, blocks: int, hidden: int, inner: int, heads: int, kv: int, vocabulary: int, tied: bool
) -> Config:
    return base | {
        "num_hidden_layers": blocks,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768,
        "dtype": "bfloat16",
    }


# By the models' published configs; scaled rotary embeddings are left out, they cost the same.
SHAPES: dict[str, Config] = {
    "llama-3.2-1b": _sizes(_LLAMA, 16, 2048, 8192, 32, 8, 128_256, True),
    "llama-3.2-3b": _sizes(_LLAMA, 28, 3072, 8192, 24, 8, 128_256, True),
    "llama-3.1-8b": _sizes(_LLAMA, 32, 4096, 14_336, 32, 8, 128_256, False),
    "llama-3.1-70b": _sizes(_LLAMA, 80, 8192, 28_672, 64, 8, 128_256, False),
    "mistral-7b": _sizes(_MISTRAL, 32, 4096, 14_336, 32, 8, 32_768, False),
    "qwen2.5-0.5b": _sizes(_QWEN2, 24, 896, 4864, 14, 2, 151_936, True),
    "qwen2.5-0.5b-32k": _sizes(_QWEN2, 24, 896, 4864, 14, 2, 32_000, True),
    "qwen2.5-1.5b": _sizes(_QWEN2, 28, 1536, 8960, 12, 2, 151_936, True),
    "qwen2.5-7b": _sizes(_QWEN2, 28, 3584, 18_944, 28, 4, 152_064, False),
    "qwen3-0.6b": _sizes(_QWEN3, 28, 1024, 3072, 16, 8, 151_936, True),
    "qwen3-1.7b": _sizes(_QWEN3, 28, 2048, 6144, 16, 8, 151_936, True),
    "qwen3-8b": _sizes(_QWEN3, 36, 4096, 12_288, 32, 8, 151_936, False),
    "smollm2-360m": _sizes(_LLAMA, 32, 960, 2560, 15, 5, 49_152, True),
}


def open_shape(name: str) -> Config:
    """Return the config of a shape: a name of SHAPES, a config.json, or a folder with one. Raises UserError for
    another.
    """
    if name in SHAPES:
        return dict(SHAPES[name])
    path = Path(name)
    if path.is_dir():
        config = read_config(path)
    elif path.is_file():
        config = read_json_object(path, "")
    else:
        raise UserError(f"--shape {name}: no such file, and none of {', '.join(SHAPES)}")
    family_of(config)
    num_blocks(config)
    return {field: value for field, value in config.items() if field not in ("mi_prun", "quantization_config")}


def spread(num_blocks: int, k: int) -> tuple[int, ...]:
    """Return k blocks, evenly spread. Which ones go makes no difference to speed where all are of one kind."""
    return tuple((2 * i + 1) * num_blocks // (2 * k) for i in range(k))


def write_shape(config: Config, kept: Sequence[int], out: Path, *, force: bool = False) -> None:
    """Write a folder that vLLM opens with `shape_flags`: the config of the kept blocks, and a tokenizer."""
    reduced = reduce_config(config, kept)
    text = reduced.get("text_config", reduced)
    with new_folder(out, force=force) as folder:
        home = folder / TOKENIZER
        home.mkdir()
        files = {folder / "config.json": reduced}
        files |= {home / name: data for name, data in tokenizer_files(int(text["vocab_size"])).items()}
        for path, data in files.items():
            path.write_text(json.dumps(data))
            sync(path)


def shape_flags(folder: Path) -> list[str]:
    """Return the flags of `mi-prun-serve` for a shape. The tokenizer lies apart: beside a config its class would be the
    family's.
    """
    return ["--load-format", "dummy", "--tokenizer", str(folder / TOKENIZER)]


def tokenizer_files(vocabulary: int) -> dict[str, Any]:
    """Return tokenizer.json and its config. Id i is the word `ti`; id 0 stands for unknown words and for the end of a
    text.
    """
    words = {f"t{i}": i for i in range(vocabulary)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 0, "content": "t0", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }  # fmt: skip
    settings = {"tokenizer_class": "TokenizersBackend", "unk_token": "t0", "eos_token": "t0"}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}
