"""`mi-prun import`: a GGUF file becomes a bfloat16 model folder, by transformers' own reader.

What that reader leaves out is put right here, or refused:

- whether a text begins with BOS (`tokenizer.ggml.add_bos_token`, else llama.cpp's rule for the kind of vocabulary);
- whether it begins with a space (`tokenizer.ggml.add_space_prefix`);
- digits that the tokenizer takes one by one, and words that it takes whole (`tokenizer.ggml.pre`);
- a second token that ends an answer (`tokenizer.ggml.eot_token_id`);
- keys that may be left out, with llama.cpp's defaults (`corrections`);
- scaled rotary positions, and tensors that it does not know: refused, for the model would be another one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mi_prun.architecture.architecture import check_named
from mi_prun.console import progress, say
from mi_prun.errors import LONGEST_SHOWN, UserError
from mi_prun.files import check_name, check_output, check_space, new_folder, sync
from mi_prun.importing.gguf_header import GgufHeader, read_gguf_header
from mi_prun.model.pretrained import library_errors

PACKAGES = ("gguf", "accelerate")
FULL_PRECISION = ("F32", "F16", "BF16")
# Names of llama.cpp. It begins a text with BOS for these kinds of vocabulary where the file does not say.
BOS_VOCABULARIES = ("llama",)
LLAMA3_SPLITS = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"
)  # fmt: skip
BOS_SPLITS = (*LLAMA3_SPLITS, "tekken", "chameleon")
# A word that is in these vocabularies is one token, whatever the merges make of it.
WHOLE_WORD_SPLITS = (*LLAMA3_SPLITS, "tekken", "youtu", "minicpm5")
DIGIT_SPLITS = ("smollm", "refact", "command-r", "starcoder", "codeshell", "exaone", "minerva-7b")
GPT2_SPLITS = ("gpt-2", "default", "gpt2", "phi-2", "olmo", "jais", "mpt", "jina-es", "jina-de", "trillion", "gigachat")
SPECIAL_TOKENS = ("bos", "eos", "eot", "unknown", "padding")
DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}  # of the kind of vocabulary `llama`
UNSET_IDS = (-1, 2**32 - 1)
ROPE_FACTORS = "rope_freqs.weight"
BLOCK_NAME = re.compile(r"\bblk\.(\d+)\.")
GEMMA2_27B_BLOCKS = 46
HASH_BYTES = 1 << 24
BF16_BYTES = 2
EXPERTS, EXPERT_BYTES = "_exps.", 4  # transformers holds experts in float32, until the model has its copy
LIBRARY_BYTES, UNPACKING_BYTES, ENTRY_BYTES = 600 * 2**20, 10, 1_000  # measured: 135M and 268M parameters
LINE_SECONDS = 20.0
SAMPLE = "It is  2026:\n\n1. Yes, it's."


def import_gguf(path: Path, out: Path, *, force: bool = False) -> GgufHeader:
    """Write the model folder. Its weights are those of the file, in bfloat16: what quantising took is not given back.

    Raises UserError for a missing package, a file that is not whole, and a model that would not be the same.
    """
    check_packages()
    check_name(path, "file")
    check_output(out, force=force, inputs=(path,))
    from gguf import GGML_QUANT_SIZES

    header = read_gguf_header(path, {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()})
    check_positions(header)
    parameters = sum(tensor.num_elements for tensor in header.tensors)
    say(
        f"{path.name}: {header.architecture}, {stored_as(header)}, {parameters:,} parameters; writes "
        f"{BF16_BYTES * parameters / 2**30:.2f} GiB, takes about {memory_bytes(header) / 2**30:.1f} GiB of memory"
    )
    check_space(out, BF16_BYTES * parameters)
    with _quiet(), _parsed_once(corrections(header)), _alone(path) as file:
        config = read_config(header, file)
        tokenizer = read_tokenizer(header, file)
        model = read_model(header, config, file)
    if (note := split_note(header, tokenizer)) is not None:
        say(note)
    complete_settings(model, header)
    with new_folder(out, force=force) as partial:
        with _quiet(), library_errors(f"cannot write {out}"):
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        complete_tokenizer(partial, tokenizer, int(config.vocab_size))
        check_tokenizer(partial, tokenizer, int(config.vocab_size))
        (partial / "README.md").write_text(model_card(header, parameters, digest_of(path)), encoding="utf-8")
        mode = (partial / "README.md").stat().st_mode
        for file in partial.iterdir():
            file.chmod(mode)  # safetensors' own is the owner's alone
            sync(file)
    return header


def memory_bytes(header: GgufHeader) -> int:
    """About the most memory that an import takes: libraries, the model, its largest tensor while it is unpacked, its
    experts, and the vocabulary as the gguf package holds it.
    """
    sizes = [tensor.num_elements for tensor in header.tensors]
    experts = sum(tensor.num_elements for tensor in header.tensors if EXPERTS in tensor.name)
    entries = sum(len(value) for value in header.metadata.values() if isinstance(value, list))
    weights = BF16_BYTES * sum(sizes) + EXPERT_BYTES * experts + UNPACKING_BYTES * max(sizes)
    return LIBRARY_BYTES + weights + ENTRY_BYTES * entries


def check_packages() -> None:
    """Refuse where a package that transformers reads GGUF files with is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"import needs {' and '.join(missing)}: in a clone of the repository run pip install '.[gguf]'")


def check_positions(header: GgufHeader) -> None:
    """Refuse scaled rotary positions, which transformers reads as if they were not, and a base that is none."""
    base = header.metadata.get(f"{header.architecture}.rope.freq_base", 1.0)
    if not isinstance(base, int | float) or not 0 < base < math.inf:
        raise UserError(
            f"{header.path}: {header.architecture}.rope.freq_base must be a number above 0, got "
            f"{str(base)[:LONGEST_SHOWN]}; the header is wrong"
        )
    prefix = f"{header.architecture}.rope.scaling"
    kind = header.text(f"{prefix}.type")
    older = header.metadata.get(f"{header.architecture}.rope.scale_linear", 1.0)
    factor = header.metadata.get(f"{prefix}.factor", older)
    if kind not in (None, "none") or factor not in (0.0, 1.0):
        raise UserError(
            f"{header.path}: its rotary positions are scaled ({prefix}: {kind or 'factor'} {factor}), which "
            "transformers does not read from GGUF; take the model's safetensors"
        )
    if any(tensor.name == ROPE_FACTORS for tensor in header.tensors):
        raise UserError(
            f"{header.path}: its rotary positions are scaled by {ROPE_FACTORS}, which transformers does not read from "
            "GGUF; take the model's safetensors"
        )


def stored_as(header: GgufHeader) -> str:
    """The way that most of the weights are stored, by llama.cpp's name."""
    from gguf import GGMLQuantizationType

    elements: dict[int, int] = {}
    for tensor in header.tensors:
        elements[tensor.kind] = elements.get(tensor.kind, 0) + tensor.num_elements
    return str(GGMLQuantizationType(max(elements, key=lambda kind: elements[kind])).name)


def read_config(header: GgufHeader, file: Path) -> Any:
    """The config that transformers makes of the metadata. file: see `_alone`.

    Raises UserError for an architecture that it, or this project, does not know.
    """
    from transformers import AutoConfig

    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if embedding is None or not isinstance(tokens, list):
        raise UserError(f"{header.path} has no embedding or no vocabulary; it is not a whole model")
    check_metadata(header, len(tokens))
    with _one_line(header, "config"):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    try:
        check_named(config.to_dict())
    except UserError as error:
        raise UserError(f"{header.path}: {error}") from error
    if header.whole(f"{header.architecture}.attention.head_count") is None:
        raise UserError(f"{header.path} does not say its {header.architecture}.attention.head_count")
    complete_config(config, header)
    if embedding.shape[0] != config.vocab_size or len(tokens) > config.vocab_size:
        raise UserError(
            f"{header.path}: the embedding has {embedding.shape[0]:,} rows, the vocabulary {len(tokens):,} tokens, the "
            f"config says {config.vocab_size:,}; the header is wrong"
        )
    return config


def check_metadata(header: GgufHeader, num_tokens: int) -> None:
    """Refuse a number of blocks, a special token or a chat template that cannot be the model's."""
    stated = header.whole(f"{header.architecture}.block_count")
    blocks = len({block[1] for tensor in header.tensors if (block := BLOCK_NAME.search(tensor.name))})
    if stated != blocks:
        raise UserError(
            f"{header.path}: {header.architecture}.block_count is {stated}, but it has tensors of {blocks} blocks; the "
            "file is not whole or its header is wrong"
        )
    for key in (f"tokenizer.ggml.{name}_token_id" for name in SPECIAL_TOKENS):
        value = header.metadata.get(key)
        number = header.whole(key)
        if value not in (None, *UNSET_IDS) and (number is None or not 0 <= number < num_tokens):
            raise UserError(
                f"{header.path}: {key} must be a number below {num_tokens:,}, got {str(value)[:LONGEST_SHOWN]}; the "
                "header is wrong"
            )
    if "tokenizer.chat_template" in header.metadata and header.text("tokenizer.chat_template") is None:
        raise UserError(f"{header.path}: tokenizer.chat_template must be a text; the header is wrong")


def special_id(header: GgufHeader, name: str) -> int | None:
    """The number of a special token, or llama.cpp's default for it; None where there is neither."""
    number = header.whole(f"tokenizer.ggml.{name}_token_id")
    default = DEFAULT_IDS.get(name) if header.text("tokenizer.ggml.model") == "llama" else None
    return default if number is None or number in UNSET_IDS else number


def corrections(header: GgufHeader) -> dict[str, int | None]:
    """What transformers must find under these keys, whatever the file has there. None: nothing.

    - A file without `head_count_kv` has as many as heads. transformers would take the class's default, and leave the
      queries and keys of a Llama in llama.cpp's order.
    - By the name `mistral` it would take a Llama for a Mistral, with a window.
    """
    prefix = f"{header.architecture}.attention.head_count"
    values: dict[str, int | None] = {"general.name": None}
    values |= {f"tokenizer.ggml.{name}_token_id": special_id(header, name) for name in SPECIAL_TOKENS}
    return values if f"{prefix}_kv" in header.metadata else values | {f"{prefix}_kv": header.whole(prefix)}


def complete_config(config: Any, header: GgufHeader) -> None:
    """Set what transformers does not read, or no key of GGUF says. Gemma 2 27B scales its queries by another width than
    its heads have, as llama.cpp does by the number of blocks.
    """
    if header.architecture == "phi3":
        config.sliding_window = header.whole("phi3.attention.sliding_window") or None
    if header.architecture == "gemma2" and header.whole("gemma2.block_count") == GEMMA2_27B_BLOCKS:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads


def read_tokenizer(header: GgufHeader, file: Path) -> Any:
    """The tokenizer that transformers makes of the metadata, with BOS, spaces and words as the file has them."""
    from tokenizers import decoders, normalizers, pre_tokenizers
    from transformers import AutoTokenizer

    with _one_line(header, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    kind, split = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre") or "default"
    backend = tokenizer.backend_tokenizer
    if kind == "gpt2" and split in DIGIT_SPLITS:
        by_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_words])
    if kind == "gpt2" and split in WHOLE_WORD_SPLITS:
        backend.model.ignore_merges = True
    if kind == "llama" and not _said(header, "add_space_prefix", True):
        backend.normalizer, backend.pre_tokenizer = normalizers.Replace(" ", "▁"), None
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    begins = _said(header, "add_bos_token", kind in BOS_VOCABULARIES or split in BOS_SPLITS)
    if begins and tokenizer.bos_token is None:
        raise UserError(
            f"{header.path}: a text begins with BOS, but tokenizer.ggml.bos_token_id is missing; take the model's "
            "safetensors"
        )
    tokenizer.add_bos_token = begins
    tokenizer.add_eos_token = _said(header, "add_eos_token", False)
    if length := header.whole(f"{header.architecture}.context_length"):
        tokenizer.model_max_length = length
    return tokenizer


def split_note(header: GgufHeader, tokenizer: Any) -> str | None:
    """A line where transformers has put GPT-2's rule for words in the place of one that is or may be another."""
    from tokenizers import pre_tokenizers

    split = header.text("tokenizer.ggml.pre") or "default"
    if not isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return None
    if split == "default" and header.architecture != "gpt2":
        return "the file does not say how its tokenizer cuts text into words: taken as GPT-2's way, it may be another"
    if split not in GPT2_SPLITS:
        return f"its tokenizer cuts text into words as {split!r} does, transformers as GPT-2 did: expect a small loss"
    return None


def _said(header: GgufHeader, name: str, default: bool) -> bool:
    value = header.metadata.get(f"tokenizer.ggml.{name}")
    return value if isinstance(value, bool) else default


def read_model(header: GgufHeader, config: Any, file: Path) -> Any:
    """The model in bfloat16, on the CPU. Raises UserError where a tensor is missing, or would be left out."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with _one_line(header, "weights"):
        model, report = AutoModelForCausalLM.from_pretrained(
            file.parent,
            config=config,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{header.path} lacks {len(missing)} tensors of its architecture, such as {missing[0]}")
    with torch.device("meta"):
        stated = AutoModelForCausalLM.from_config(config).state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.shape != stated[name].shape:
            raise UserError(
                f"{header.path}: {name} is {tuple(tensor.shape)}, but {tuple(stated[name].shape)} by the metadata; the "
                "header is wrong"
            )
    stored, taken = sum(tensor.num_elements for tensor in header.tensors), sum(p.numel() for p in model.parameters())
    if stored != taken:
        raise UserError(
            f"{header.path} has {stored:,} parameters, transformers takes {taken:,} of them as {config.model_type}: "
            "the model would not be the same; take its safetensors"
        )
    return model


def complete_settings(model: Any, header: GgufHeader) -> None:
    """Make an ordinary model of it: no word of GGUF in its config, and every token that ends an answer."""
    model.hf_quantizer = None
    model.is_quantized = False
    model.generation_config._from_model_config = False
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    ends = [special_id(header, name) for name in ("eos", "eot")]
    known = list(dict.fromkeys(token for token in ends if token is not None))
    if len(known) > 1:
        model.config.eos_token_id = model.generation_config.eos_token_id = known


def complete_tokenizer(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    """Say BOS and EOS in tokenizer_config.json, which decides; leave out where the tokenizer was read from, and tokens
    that transformers adds of its own (GPT-2's `<|endoftext|>`) behind the last row of the embedding.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "gguf_file", "name_or_path"):
        settings.pop(name, None)
    settings |= {"add_bos_token": tokenizer.add_bos_token, "add_eos_token": tokenizer.add_eos_token}
    _write_json(path, settings)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    known = [token for token in whole["added_tokens"] if token["id"] < vocab_size]
    if len(known) < len(whole["added_tokens"]):
        _write_json(path, whole | {"added_tokens": known})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_tokenizer(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    """Raise UserError where the written tokenizer gives other tokens than the one that was read, or too many."""
    from transformers import AutoTokenizer

    written = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    same = written(SAMPLE)["input_ids"] == tokenizer(SAMPLE)["input_ids"]
    if not same or written.chat_template != tokenizer.chat_template or len(written) > vocab_size:
        raise UserError(
            f"the tokenizer ({type(tokenizer).__name__}) reads otherwise once it is written; take the model's "
            "safetensors, and say so in an issue"
        )


def digest_of(path: Path) -> str:
    """sha256 of a file, with progress."""
    digest = hashlib.sha256()
    with path.open("rb") as file, progress("sha256", path.stat().st_size / 2**20, "MiB") as advance:
        while data := file.read(HASH_BYTES):
            digest.update(data)
            advance(len(data) / 2**20)
    return digest.hexdigest()


def model_card(header: GgufHeader, parameters: int, sha256: str) -> str:
    """README.md: the licence as the file states it, and where the weights are from."""
    text = header.text
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    for field, key in (("license", "license"), ("license_name", "license.name"), ("license_link", "license.link")):
        if value := text(f"general.{key}"):
            front.append(f"{field}: {json.dumps(value)}")
    languages = header.metadata.get("general.languages")
    if isinstance(languages, list) and languages:
        front.append(f"language: {json.dumps(languages)}")
    front += ["tags:", "- gguf-import", "---"]
    kind = stored_as(header)
    lost = "" if kind in FULL_PRECISION else " What quantising took from them is not given back."
    rows = [
        ("file", header.path.name),
        ("sha256", sha256),
        ("bytes", f"{header.num_bytes:,}"),
        ("stored as", kind),
        ("architecture", header.architecture),
        *((key, text(f"general.{key}")) for key in ("name", "organization", "author", "basename", "finetune")),
        *((key, text(f"general.{key}")) for key in ("url", "repo_url", "source.url", "source.repo_url")),
        ("base model", text("general.base_model.0.repo_url")),
        ("licence", text("general.license") or "not stated in the file"),
    ]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows if value)
    name = text("general.name") or header.path.stem
    return "\n".join(front) + (
        f"\n\n# {_cell(name)}\n\n{parameters:,} parameters in bfloat16, read from a GGUF file by transformers."
        f"{lost}\n\n| | |\n| --- | --- |\n{table}\n\nMade by `mi-prun import {_cell(header.path.name)} -o THIS_FOLDER`."
        " The licence of the model holds for this copy.\n"
    )


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _one_line(header: GgufHeader, part: str) -> AbstractContextManager[None]:
    return library_errors(f"{header.path}: transformers cannot read its {part}")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Yield a link to the file in a folder of its own: transformers prefers a tokenizer that lies beside the file."""
    with tempfile.TemporaryDirectory() as home:
        link = Path(home) / "model.gguf"
        link.symlink_to(path.resolve())
        yield link


@contextlib.contextmanager
def _parsed_once(values: dict[str, int | None]) -> Iterator[None]:
    """Give transformers one reader for config and weights: each parses the whole vocabulary, in seconds.

    values: what it and the reader for the tokenizer find in place of what the file has, see `corrections`.
    """
    import gguf
    import numpy as np
    from transformers.integrations.gguf import reader as tokenizer_reader

    read_reader, read_metadata = gguf.GGUFReader, tokenizer_reader.read_gguf_metadata

    kind = [gguf.GGUFValueType.UINT32]
    fields = {
        key: None if value is None else gguf.ReaderField(0, key, [np.array([value])], [0], kind)
        for key, value in values.items()
    }

    @functools.cache
    def reader(path: str) -> Any:
        whole = read_reader(path)
        _replace(whole.fields, fields)
        return whole

    def metadata(*arguments: Any) -> Any:
        entries, tensors = read_metadata(*arguments)
        _replace(entries, values)
        return entries, tensors

    with patch.object(gguf, "GGUFReader", reader), patch.object(tokenizer_reader, "read_gguf_metadata", metadata):
        yield


def _replace(entries: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        entries.pop(key, None)
        if value is not None:
            entries[key] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Bars of transformers on a terminal only; else a line every 20 seconds. No warnings."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(_Lines(sys.stderr)):
        yield


class _Lines(io.TextIOBase):
    """A stream that lets a bar's latest state through every 20 seconds, as a line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._last = time.monotonic()

    def write(self, text: str) -> int:
        now = time.monotonic()
        if "%|" in text and now - self._last >= LINE_SECONDS:
            self._last = now
            self._stream.write(" ".join(text.split()) + "\n")
            self._stream.flush()
        return len(text)
