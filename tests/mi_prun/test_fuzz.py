"""Mutated headers, indexes, configs, tokenizers and plans end in a right result or in one line, never in a traceback.

17,400 of them in `make test-all`: the sum of the `many`s below. `make test` takes the share in MI_PRUN_FUZZ_SHARE, the
same examples each time.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from mi_prun.architecture.architecture import FAMILIES, block_kinds, num_blocks, reduce_config
from mi_prun.artefact import Artefact
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import verify
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.errors import UserError
from mi_prun.model.identity import ModelIdentity
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.model.shard import read_shard
from mi_prun.model.weight_files import INDEX_NAME
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.text.calibration import load_calibration

HEADER = {
    "model.layers.0.w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "model.layers.1.w": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "model.norm.weight": {"dtype": "U8", "shape": [8], "data_offsets": [32, 40]},
}
DATA = bytes(range(40))
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "layer_types": ["full_attention", "sliding_attention"],
    "max_window_layers": 1,
    "use_sliding_window": True,
    "sliding_window": 4,
}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NASTY: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 6, 24, 32, 40, -1, -(2**70), 2**31, 2**63, 2**64 - 1, 2**70),
    *(0.0, 6.0, -0.5, 1e308, float("nan"), float("inf"), "", "x", "\n", "\x00", "\ud800", "é\u2028"),
    *(
        "F32",
        "F4",
        "BF16",
        "F33",
        "../x",
        "/etc/passwd",
        ".",
        "..",
        "a.safetensors",
        "../model-00001-of-00002.safetensors",
    ),
    *(ONE, TWO, "full_attention", "sliding_attention", "llama", "gemma2", "virtual", [], {}, [0, 1], [[]], [None]),
    *([2, 3], [24, 32], [0, 24], ["full_attention"], ["full_attention"] * 2, {"a": 1}, {"": {}}, [1] * 40),
]
json_values = st.sampled_from(NASTY).map(lambda value: json.loads(json.dumps(value)))
short_names = st.sampled_from(
    ["", "a", "\n", "model.layers.2.w", "model.layers.01.w", "__metadata__", "layer_x", "mi_prun"]
)


SHARE = float(os.environ.get("MI_PRUN_FUZZ_SHARE", "1"))


def many(count: int) -> Any:
    return settings(
        max_examples=round(SHARE * count),
        deadline=None,
        database=None,
        derandomize=SHARE < 1,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutated(draw: Any, value: Any) -> Any:
    """`value` with one to three of its places changed, removed or doubled under another name."""
    root = {"": json.loads(json.dumps(value))}
    for _ in range(draw(st.integers(1, 3))):
        places = [(root, "")]
        for holder, key in places:
            inner = holder[key]
            pairs = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
            places += [(inner, key) for key, _ in pairs]
        holder, key = draw(st.sampled_from(places[1:] or places))
        action = draw(st.sampled_from(["set", "set", "set", "remove", "add"]))
        if action == "set" or key == "":
            holder[key] = draw(json_values)
        elif action == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(short_names)] = holder[key]
        else:
            holder.insert(key, draw(json_values))
    return root[""]


def assert_one_line(error: UserError) -> None:
    assert str(error)
    assert "\n" not in str(error)


def check_shard(path: Path) -> None:
    try:
        shard = read_shard(path)
    except UserError as error:
        assert_one_line(error)
        return
    size = path.stat().st_size
    assert all(8 <= info.begin <= info.end <= size for info in shard.tensors.values())
    try:
        with safe_open(path, "np") as file:  # what we take for whole, the library reads too
            assert set(file.keys()) == set(shard.tensors)
    except SafetensorError as error:
        if "unknown variant" not in str(error):  # the library may know fewer dtypes
            raise AssertionError("the safetensors library refuses what was taken for whole") from error


@many(3_000)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 400))
def test_bytes_of_a_shard(tmp_path_factory, changes, cut):
    text = json.dumps(HEADER).encode()
    whole = bytearray(struct.pack("<Q", len(text)) + text + DATA)
    for offset, value in changes:
        whole[offset % len(whole)] = value
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    path.write_bytes(whole[:cut] if cut % 3 == 0 else whole)
    check_shard(path)


@many(3_000)
@given(mutated(HEADER), st.sampled_from([DATA, DATA[:-1], DATA + b"\0", b""]))
def test_header_of_a_shard(tmp_path_factory, header, data):
    text = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    check_shard(path)


def header_of(file: str) -> dict[str, Any]:
    """The blocks lie in the first shard, the rest in the second."""
    if file == ONE:
        return {name: entry for name, entry in HEADER.items() if "layers" in name}
    return {"model.norm.weight": HEADER["model.norm.weight"] | {"data_offsets": [0, 8]}}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "folder"
    path.mkdir()
    for file, data in ((ONE, DATA[:32]), (TWO, DATA[32:])):
        text = json.dumps(header_of(file)).encode()
        (path / file).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


INDEX = {
    "metadata": {"total_size": 40},
    "weight_map": {
        "model.layers.0.w": ONE,
        "model.layers.1.w": ONE,
        "model.norm.weight": TWO,
    },
}


@many(2_000)
@given(st.sampled_from(["index", "config"]), st.data())
def test_index_and_config_of_a_folder(folder, which, data):
    index = data.draw(mutated(INDEX)) if which == "index" else INDEX
    config = data.draw(mutated(CONFIG)) if which == "config" else CONFIG
    (folder / INDEX_NAME).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model = open_model(folder)
        identity = model.identity
    except UserError as error:
        assert_one_line(error)
        return
    assert model.tensors.keys() == HEADER.keys()
    assert identity.block_parameters == (6, 4)


@many(400)
@given(st.sampled_from(["header", "index", "config"]), st.sampled_from([(0,), (1,), ()]), st.data())
def test_a_checkpoint_is_written_right_or_not_at_all(folder, which, dropped, data):
    """The whole way, from a mutated folder to a verified one: each tensor has the bytes of the one it stands for."""
    text = json.dumps(data.draw(mutated(header_of(ONE))) if which == "header" else header_of(ONE)).encode()
    (folder / ONE).write_bytes(struct.pack("<Q", len(text)) + text + DATA[:32])
    (folder / INDEX_NAME).write_text(json.dumps(data.draw(mutated(INDEX)) if which == "index" else INDEX))
    (folder / "config.json").write_text(json.dumps(data.draw(mutated(CONFIG)) if which == "config" else CONFIG))
    out = folder.parent / "pruned"
    shutil.rmtree(out, ignore_errors=True)
    try:
        model = open_model(folder)
        identity = model.identity
        kept = kept_blocks(identity.num_blocks, dropped)
        try:
            plan = Plan(dense=identity, dropped=dropped, kept=kept, method="m")
        except ValidationError:  # fewer blocks than there were
            return
        write_checkpoint(model, plan, out, max_shard_bytes=24)
    except UserError as error:
        assert_one_line(error)
        assert not out.exists()
        return
    verify(out)
    wanted = {f"model.layers.{new}.w": f"model.layers.{block}.w" for new, block in enumerate(kept)}
    wanted["model.norm.weight"] = "model.norm.weight"
    dense, pruned = model.tensors, open_model(out).tensors
    assert pruned.keys() == wanted.keys()
    for new, old in wanted.items():
        (path, info), (source, was) = pruned[new], dense[old]
        assert (info.dtype, info.shape) == (was.dtype, was.shape)
        assert path.read_bytes()[info.begin : info.end] == source.read_bytes()[was.begin : was.end]


@many(3_000)
@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_a_config_is_reduced_or_refused(compared, model_type, data):
    from transformers import AutoConfig

    if model_type not in CONFIGS:
        CONFIGS[model_type] = json.loads(AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    config = data.draw(mutated(CONFIGS[model_type]))
    before = json.dumps(config)
    kept = data.draw(st.lists(st.integers(0, 40), max_size=40, unique=True).map(sorted))
    if data.draw(st.booleans()):  # else most lists would be refused, and nothing else be tried
        kept = [block for block in kept if block < num_blocks(CONFIGS[model_type])]
    try:
        reduced = reduce_config(config, kept)
    except UserError as error:
        assert_one_line(error)
        return
    finally:
        assert json.dumps(config) == before
    assert num_blocks(reduced) == len(kept) == len(block_kinds(reduced))
    compared.extend(fields_that_agree(config, reduced, kept))


@pytest.fixture(scope="module")
def compared() -> Iterator[list[str]]:
    """The fields by block that transformers read as well: not of so few configs that nothing is compared."""
    found: list[str] = []
    yield found
    assert len(found) >= 50 * SHARE  # 190 or so of all examples


def fields_that_agree(dense: dict[str, Any], reduced: dict[str, Any], kept: list[int]) -> list[str]:
    """What transformers makes of the reduced config is what it makes of the dense one, at the kept blocks."""
    from transformers import AutoConfig

    try:
        was = AutoConfig.for_model(**dense)
    except Exception:  # nothing that opens; whatever transformers raises
        return []
    now = AutoConfig.for_model(**reduced)
    was, now = was.get_text_config(), now.get_text_config()
    found = []
    for field in ("layer_types", "no_rope_layers", "layers_block_type"):
        if (values := getattr(was, field, None)) is not None:
            assert getattr(now, field) == [values[block] for block in kept]
            found.append(field)
    return found


CONFIGS: dict[str, Any] = {}
DENSE = ModelIdentity(
    name="a",
    model_type="llama",
    num_blocks=2,
    num_parameters=9,
    block_parameters=(4, 4),
    config_sha256="c",
    weights_sha256="w",
)
PLAN = Plan(dense=DENSE, dropped=(0,), kept=(1,), method="m")
MANIFEST = Manifest(plan=PLAN, weights="virtual", weight_bytes=1, dense_weight_bytes=2, files={})


@many(1_000)
@given(st.sampled_from([PLAN, MANIFEST]), st.data())
def test_plans_and_manifests(artefact: Artefact, data):
    text = json.dumps(data.draw(mutated(json.loads(artefact.to_json()))))
    try:
        read = type(artefact).parse(text, origin="x")
    except UserError as error:
        assert_one_line(error)
        return
    assert type(artefact).parse(read.to_json(), origin="x") == read


LETTERS = "abcdefghijklmnopqrstuvwxyzĠĊ"
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")
WORDS = {token: number for number, token in enumerate((*SPECIAL, *LETTERS, "th", "the", "Ġthe"))}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": number, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, token in enumerate(SPECIAL)
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "unk_token": "<unk>", "vocab": WORDS, "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"]]},
}
TOKENIZER_FILES: dict[str, dict[str, Any]] = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "model_max_length": 64,
        "add_bos_token": True,
        "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
        "extra_special_tokens": {},
        "clean_up_tokenization_spaces": False,
    },
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}},
    "added_tokens.json": {"<extra>": len(WORDS)},
}
CALIBRATION_TEXT = "the cat and the hat\n" * 12 + "<extra> <s> é\u2028 the end\n"


@pytest.fixture
def small_model(tiny: Callable[..., Path]) -> Path:
    """A model of two blocks with as many rows as its tokenizer has words, and the text to calibrate on."""
    path = tiny("qwen2", vocab_size=len(WORDS), num_hidden_layers=2)
    for name, fields in TOKENIZER_FILES.items():
        if name != "added_tokens.json":  # its token has no row
            (path / name).write_text(json.dumps(fields))
    (path / "text.txt").write_text(CALIBRATION_TEXT)
    return path


def windows_of(model: Any, text: Path) -> Any:
    """The text's tokens, as `mi-prun analyze` takes and checks them."""
    calibration = load_calibration(
        str(text), model.tokenizer, window_tokens=8, scoring_tokens=16, ranking_tokens=16, held_out_tokens=16, seed=1
    )
    tokens = torch.cat([part.tokens for part in (calibration.scoring, calibration.ranking, calibration.held_out)])
    model.check_tokens(tokens)
    return tokens


@torch.inference_mode()
def logits_of(model: Any, tokens: Any) -> Any:
    """Block by block, as `mi-prun analyze` runs it."""
    hidden = model.embed(tokens)
    for block in range(model.num_blocks):
        hidden = model.run(block, hidden)
    return model.logits(hidden)


@many(4_500)
@given(st.sampled_from(sorted(TOKENIZER_FILES)), st.data())
def test_a_tokenizer_gives_tokens_that_have_rows_or_is_refused(small_model, whole_results, which, data):
    path = small_model / which
    path.write_text(json.dumps(data.draw(mutated(TOKENIZER_FILES[which]))))
    try:
        model = open_model(small_model)
        tokens = windows_of(model, small_model / "text.txt")
    except UserError as error:
        assert_one_line(error)
        return
    finally:
        if which == "added_tokens.json":
            path.unlink()
        else:
            path.write_text(json.dumps(TOKENIZER_FILES[which]))
    assert tokens.dtype == torch.int64
    assert tokens.shape[1] == 8
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < len(WORDS)
    whole_results.append(which)


@many(500)
@given(data=st.data())
def test_a_model_with_a_mutated_config_runs_or_is_refused(small_model, whole_results, data):
    path = small_model / "config.json"
    config = path.read_text()
    path.write_text(json.dumps(data.draw(mutated(json.loads(config)))))
    try:
        model = open_model(small_model)
        tokens = torch.arange(len(WORDS))[None]
        model.check_tokens(tokens)
        logits = logits_of(load_on(model, "cpu"), tokens)
    except UserError as error:
        assert_one_line(error)
        return
    finally:
        path.write_text(config)
    assert logits.shape == (1, len(WORDS), len(WORDS))
    whole_results.append("config.json")


@pytest.fixture
def whole_results() -> Iterator[list[str]]:
    """What came through the whole way: some of each file, else the test would say nothing of a right result."""
    found: list[str] = []
    yield found
    assert found
