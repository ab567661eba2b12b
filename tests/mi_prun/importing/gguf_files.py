"""Tiny GGUF files: a random Llama with the bundled model's vocabulary, as llama.cpp's converter writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = Path(__file__).parents[3] / "bench" / "reference"
HIDDEN, HEADS, KV_HEADS, INTERMEDIATE = 64, 4, 2, 96


def write_gguf(
    path: Path, *, arch: str = "llama", blocks: int = 3, kv_heads: int = KV_HEADS, left_out: str = "", **more: Any
) -> Path:
    """A GGUF file of a random model in Q8_0.

    left_out: a tensor that is not written. more: metadata, `.` spelled `__`; a tensor where the value is an array;
    None leaves a key out.
    """
    import gguf

    source = json.loads((REFERENCE / "tokenizer.json").read_text())
    tokens = list(source["model"]["vocab"])
    special = {token["id"] for token in source["added_tokens"]}
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, arch)
    fields: dict[str, Any] = {
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        "general.languages": ["en"],
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.block_count": blocks,
        f"{arch}.feed_forward_length": INTERMEDIATE,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": HIDDEN // HEADS,
        f"{arch}.rope.freq_base": 10_000.0,
        f"{arch}.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if number in special else 1 for number in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in source["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    }
    tensors: dict[str, Any] = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for block in range(blocks):
        tensors |= {
            f"blk.{block}.attn_norm.weight": (HIDDEN,),
            f"blk.{block}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{block}.attn_k.weight": (HIDDEN * kv_heads // HEADS, HIDDEN),
            f"blk.{block}.attn_v.weight": (HIDDEN * kv_heads // HEADS, HIDDEN),
            f"blk.{block}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{block}.ffn_norm.weight": (HIDDEN,),
            f"blk.{block}.ffn_gate.weight": (INTERMEDIATE, HIDDEN),
            f"blk.{block}.ffn_up.weight": (INTERMEDIATE, HIDDEN),
            f"blk.{block}.ffn_down.weight": (HIDDEN, INTERMEDIATE),
        }
    for name, value in more.items():
        (tensors if isinstance(value, np.ndarray) else fields)[name.replace("__", ".")] = value
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            add[type(value)](name, value)
    for name, shape in tensors.items():
        if name == left_out:
            continue
        if isinstance(shape, np.ndarray):
            writer.add_tensor(name, shape)
        elif len(shape) == 1:
            writer.add_tensor(name, (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32))
        else:
            values = (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sentencepiece(**more: Any) -> dict[str, Any]:
    """Metadata of a vocabulary of the kind `llama`: bytes, and the words `hi` and `▁hi`."""
    words = ["▁", "h", "i", "▁h", "▁hi", "hi"]
    return {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__pre": None,
        "tokenizer__ggml__merges": None,
        "tokenizer__ggml__tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words],
        "tokenizer__ggml__scores": [0.0] * 259 + [-1.0 - rank for rank in range(len(words))],
        "tokenizer__ggml__token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer__ggml__bos_token_id": 1,
        "tokenizer__ggml__eos_token_id": 2,
        "tokenizer__ggml__unknown_token_id": 0,
    } | more
