"""A GGUF file becomes a model folder: the same log-probabilities, the same tokens, and refusals in one line."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mi_prun import files
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.cli import app
from mi_prun.console import run_app
from mi_prun.errors import UserError
from mi_prun.importing import gguf_import
from mi_prun.importing.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from mi_prun.importing.gguf_import import import_gguf
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.text.calibration import begins_with_bos

from .gguf_files import REFERENCE, sentencepiece, write_gguf

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

WORDS = "The old man opened the door and said that it was late."


def by_transformers(path: Path) -> Any:
    """transformers' own load of a GGUF file, in bfloat16."""
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )


def check_same(path: Path, out: Path) -> None:
    """Log-probabilities of the folder, opened by transformers alone, are those of transformers' load of the file."""
    from transformers import AutoModelForCausalLM

    tokens = open_model(out).tokenizer(WORDS, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        ours = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)(input_ids=tokens).logits
        theirs = by_transformers(path)(input_ids=tokens).logits
    assert torch.equal(torch.log_softmax(ours.float(), -1), torch.log_softmax(theirs.float(), -1))


def drop(out: Path, pruned: Path, dropped: tuple[int, ...]) -> Path:
    dense = open_model(out)
    kept = kept_blocks(dense.num_blocks, dropped)
    write_checkpoint(dense, Plan(dense=dense.identity, dropped=dropped, kept=kept, method="by-hand"), pruned)
    return pruned


def test_a_tiny_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model"
    sys.argv = ["mi-prun", "import", str(path), "-o", str(out)]
    assert run_app(app) == 0
    said = capsys.readouterr()
    assert "Tiny, " in said.out
    assert "licence: apache-2.0" in said.out
    assert "tiny.gguf: llama, Q8_0, " in said.err
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 1
    card = (out / "README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert "| file | tiny.gguf |" in card
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {(out / "config.json").stat().st_mode & 0o777}
    tokenizer = open_model(out).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "user: x\n"
    assert tokenizer.decode(tokenizer(WORDS)["input_ids"]) == WORDS
    check_same(path, out)
    pruned = drop(out, tmp_path / "pruned", (1,))
    assert load_on(open_model(pruned)).num_blocks == 2


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        ({"tokenizer__ggml__add_bos_token": True}, True),
        ({"tokenizer__ggml__add_bos_token": False}, False),
        ({}, False),  # llama.cpp's rule for a byte-level vocabulary ...
        ({"tokenizer__ggml__pre": "llama-bpe"}, True),  # ... but for Llama 3's
        ({"tokenizer__ggml__pre": "tekken"}, True),  # ... and Mistral's
        ({"tokenizer__ggml__pre": "llama-bpe", "tokenizer__ggml__add_bos_token": False}, False),
    ],
)
def test_a_text_begins_with_bos_where_the_file_says_so(tmp_path: Path, said: dict[str, Any], begins: bool) -> None:
    out = tmp_path / "model"
    import_gguf(write_gguf(tmp_path / "tiny.gguf", **said), out)
    tokenizer = open_model(out).tokenizer
    assert begins_with_bos(tokenizer) is begins
    assert json.loads((out / "tokenizer_config.json").read_text())["add_bos_token"] is begins
    again = drop(out, tmp_path / "pruned", (0,))
    assert begins_with_bos(open_model(again).tokenizer) is begins


def test_a_tokenizer_beside_the_file_is_not_taken(tmp_path: Path) -> None:
    """transformers prefers it to the file's own."""
    path, out = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model"
    import_gguf(path, tmp_path / "alone")
    other = json.loads((tmp_path / "alone/tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    import_gguf(path, out)
    alone, ours = (open_model(folder).tokenizer for folder in (tmp_path / "alone", out))
    assert ours("a b ab")["input_ids"] == alone("a b ab")["input_ids"]
    assert ours.chat_template == alone.chat_template is not None


def test_the_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = write_gguf(tmp_path / "models/tiny.gguf")
    for out in (path, path.parent):
        with pytest.raises(UserError, match=r"is or holds .*tiny\.gguf, which is read"):
            import_gguf(path, out, force=True)
    assert path.is_file()


def test_a_disk_without_room_is_refused_before_the_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr(gguf_import, "read_config", lambda *args: pytest.fail("read already"))
    with pytest.raises(UserError, match=r"model needs 0\.02 GB and .* has 0\.00 GB free"):
        import_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")


def test_a_disk_that_fills_up_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*args: Any, **more: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(UserError, match=r"cannot write .*model: I/O error: No space left"):
        import_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(("blocks", "scalar"), [(46, 144), (42, 256)])
def test_the_largest_gemma_2_scales_its_queries_by_its_width(blocks: int, scalar: int) -> None:
    config = SimpleNamespace(hidden_size=4608, num_attention_heads=32, query_pre_attn_scalar=256)
    header = SimpleNamespace(architecture="gemma2", whole={"gemma2.block_count": blocks}.get)
    gguf_import.complete_config(config, header)  # type: ignore[arg-type]
    assert config.query_pre_attn_scalar == scalar


def config_of(path: Path) -> Any:
    """The config of a file whose weights need not be its architecture's."""
    import gguf

    header = read_gguf_header(path, {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()})
    return gguf_import.read_config(header, path)


@pytest.mark.parametrize(("stated", "window"), [(7, 7), (0, None), (None, None)])
def test_the_window_of_phi_3_is_the_file_s(tmp_path: Path, stated: int | None, window: int | None) -> None:
    path = write_gguf(
        tmp_path / "tiny.gguf", arch="phi3", tokenizer__ggml__padding_token_id=3, phi3__attention__sliding_window=stated
    )
    assert config_of(path).sliding_window == window


def test_a_model_called_mistral_has_no_window_of_its_own(tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "tiny.gguf", general__name="mistral"), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["model_type"] == "llama"
    assert "sliding_window" not in config


def test_as_many_keys_as_heads_where_the_file_does_not_say(tmp_path: Path) -> None:
    """The queries and keys are in transformers' order all the same."""
    folders = []
    for name, said in (("said", {}), ("unsaid", {"llama__attention__head_count_kv": None})):
        import_gguf(write_gguf(tmp_path / f"{name}.gguf", kv_heads=4, **said), tmp_path / name)
        folders.append(load_on(open_model(tmp_path / name)).model.state_dict())
    assert [name for name, tensor in folders[0].items() if not torch.equal(tensor, folders[1][name])] == []
    with pytest.raises(UserError, match=r"does not say its llama\.attention\.head_count"):
        import_gguf(write_gguf(tmp_path / "none.gguf", llama__attention__head_count=None), tmp_path / "model")


def test_experts_are_held_in_float32() -> None:
    """All of them at once, beside the model in bfloat16."""

    def needed(name: str) -> int:
        return gguf_import.memory_bytes(GgufHeader(Path("x"), 0, {}, (GgufTensor(name, (8, 4, 2), 0),)))

    assert needed("blk.0.ffn_up_exps.weight") - needed("blk.0.ffn_up.weight") == 4 * 8 * 4 * 2


def test_two_tokens_end_an_answer(tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__eot_token_id=7), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == [1, 7]


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    head = np.random.default_rng(1).standard_normal((4096, 64)).astype(np.float32)
    path, out = write_gguf(tmp_path / "tiny.gguf", output__weight=head), tmp_path / "model"
    import_gguf(path, out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in open_model(out).tensors
    check_same(path, out)


def test_digits_one_by_one(tmp_path: Path) -> None:
    """`smollm` cuts digits off first: what stands before them is a piece of its own."""
    import_gguf(write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__pre="smollm"), tmp_path / "model")
    backend = open_model(tmp_path / "model").tokenizer.backend_tokenizer
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a  12")]
    assert pieces == ["a", "ĠĠ", "1", "2"]


@pytest.mark.parametrize("split", ["llama-bpe", "tekken"])
def test_a_word_of_the_vocabulary_is_one_token(tmp_path: Path, split: str) -> None:
    """llama.cpp looks for the whole word before it merges, with these vocabularies."""
    source = json.loads((REFERENCE / "tokenizer.json").read_text())["model"]
    merges = [" ".join(merge) for merge in source["merges"] if "".join(merge) != "Ġdoor"]
    assert len(merges) < len(source["merges"])
    path = write_gguf(
        tmp_path / "tiny.gguf", tokenizer__ggml__pre=split, tokenizer__ggml__merges=merges,
        tokenizer__ggml__add_bos_token=False,
    )  # fmt: skip
    import_gguf(path, tmp_path / "model")
    assert open_model(tmp_path / "model").tokenizer.tokenize(" door") == ["Ġdoor"]


@pytest.mark.parametrize(("said", "tokens"), [({}, ["▁hi"]), ({"tokenizer__ggml__add_space_prefix": False}, ["hi"])])
def test_a_text_begins_with_a_space_where_the_file_says_so(
    tmp_path: Path, said: dict[str, Any], tokens: list[str]
) -> None:
    import_gguf(write_gguf(tmp_path / "tiny.gguf", **sentencepiece(**said)), tmp_path / "model")
    tokenizer = open_model(tmp_path / "model").tokenizer
    assert tokenizer.tokenize("hi") == tokens
    assert tokenizer.tokenize("hi hi") == [*tokens, "▁hi"]
    assert tokenizer.decode(tokenizer("hi hi", add_special_tokens=False)["input_ids"]) == "hi hi"
    if said:
        assert tokenizer.decode(tokenizer(" hi", add_special_tokens=False)["input_ids"]) == " hi"


def test_special_tokens_that_the_file_leaves_out_are_llama_cpp_s(tmp_path: Path) -> None:
    unsaid = {f"tokenizer__ggml__{name}_token_id": None for name in ("bos", "eos", "unknown")}
    import_gguf(write_gguf(tmp_path / "tiny.gguf", **sentencepiece(**unsaid)), tmp_path / "model")
    tokenizer = open_model(tmp_path / "model").tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer("hi")["input_ids"][0] == 1
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_a_padding_token_that_is_unset_is_none(tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__padding_token_id=2**32 - 1), tmp_path / "model")
    assert open_model(tmp_path / "model").tokenizer.pad_token is None
    assert json.loads((tmp_path / "model/config.json").read_text())["pad_token_id"] is None


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("poro-chat", "as 'poro-chat' does"),
        ("default", "does not say how its tokenizer cuts"),
        (None, "does not say how its tokenizer cuts"),
    ],
)
def test_a_split_that_transformers_does_not_know_is_said(
    tmp_path: Path, split: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import_gguf(write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__pre=split), tmp_path / "model")
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"arch": "rwkv6"}, "rwkv6"),
        ({"arch": "bloom"}, "'bloom' is not supported"),
        ({"llama__block_count": 10**9}, "block_count is 1000000000, but it has tensors of 3 blocks"),
        ({"llama__block_count": 2}, "block_count is 2, but it has tensors of 3 blocks"),
        ({"blk__0__other__weight": np.ones(8, np.float32)}, "has .* parameters, transformers takes"),
        ({"left_out": "blk.1.ffn_up.weight"}, "lacks 1 tensors .* model.layers.1.mlp.up_proj.weight"),
        ({"left_out": "token_embd.weight"}, "no embedding"),
        ({"llama__vocab_size": 5_000}, "the embedding has 4,096 rows"),
        ({"llama__feed_forward_length": 100}, r"gate_proj.weight is \(96, 64\), but \(100, 64\) by the metadata"),
        (
            {"llama__embedding_length": 66},
            r"cannot read its config: .*: ValueError: The hidden size \(66\) is not",
        ),
        ({"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0}, "rotary positions are scaled"),
        ({"llama__rope__scale_linear": 4.0}, "rotary positions are scaled"),
        ({"rope_freqs__weight": np.ones(8, np.float32)}, "rotary positions are scaled"),
        ({"llama__rope__freq_base": math.nan}, "freq_base must be a number above 0, got nan"),
        ({"llama__rope__freq_base": 0.0}, "freq_base must be a number above 0, got 0.0"),
        ({"llama__rope__freq_base": -1.0}, "freq_base must be a number above 0, got -1.0"),
        ({"tokenizer__ggml__bos_token_id": 4096}, "bos_token_id must be a number below 4,096, got 4096"),
        ({"tokenizer__ggml__eot_token_id": 2**31}, "eot_token_id must be a number below 4,096, got 2147483648"),
        ({"tokenizer__ggml__eos_token_id": "</s>"}, "eos_token_id must be a number below 4,096, got </s>"),
        ({"tokenizer__ggml__bos_token_id": None, "tokenizer__ggml__add_bos_token": True}, "bos_token_id is missing"),
        ({"tokenizer__chat_template": ["a", "b"]}, "chat_template must be a text"),
        ({"tokenizer__ggml__tokens": None}, "vocabulary|config|transformers"),
        ({"tokenizer__ggml__model": "rwkv"}, "tokenizer"),
    ],
)
def test_what_would_be_another_model_is_refused(tmp_path: Path, made: dict[str, Any], said: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", **made)
    with pytest.raises(UserError, match=said):
        import_gguf(path, tmp_path / "model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tiny.gguf"]


def test_a_truncated_file_leaves_nothing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(UserError, match="is truncated"):
        import_gguf(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_import, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[gguf\]'"):
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "model")


def test_an_output_that_is_there_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(UserError, match="is not empty"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "model")


@pytest.mark.long
def test_smollm2(tmp_path: Path, smollm2_gguf: Path) -> None:
    """A model that people know: its log-probabilities, its chat, its digits."""
    out = tmp_path / "smollm2"
    import_gguf(smollm2_gguf, out)
    check_same(smollm2_gguf, out)
    model, tokenizer = load_on(open_model(out)), open_model(out).tokenizer
    assert not begins_with_bos(tokenizer)
    assert tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    whole: Any = model.model
    with torch.inference_mode():
        answer = whole.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_gemma(tmp_path: Path, gemma_gguf: Path) -> None:
    """Without BOS its perplexity is nearly three times as high: the tokenizer of the folder has it."""
    out = tmp_path / "gemma"
    import_gguf(gemma_gguf, out)
    check_same(gemma_gguf, out)
    model, tokenizer = load_on(open_model(out)), open_model(out).tokenizer
    assert begins_with_bos(tokenizer)
    tokens = tokenizer(WORDS, return_tensors="pt")["input_ids"]
    whole: Any = model.model
    with torch.inference_mode():
        with_bos, without = (math.exp(whole(input_ids=ids, labels=ids).loss) for ids in (tokens, tokens[:, 1:]))
    assert with_bos < without / 2
