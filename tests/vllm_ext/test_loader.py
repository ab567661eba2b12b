"""Load format `mi_prun` on real vLLM: a virtual folder says, bit for bit, what the written checkpoint says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.model.model_folder import open_model

pytestmark = pytest.mark.engine

DROPPED = (1, 2, 4)
PROMPTS = [[(7 * place + 13 * row) % 97 for place in range(24)] for row in range(3)]
SAMPLING = {"prompt_logprobs": 0}
# Heads of 32 are the smallest that vLLM's CPU attention has.
WIDE = {"hidden_size": 128, "head_dim": 32}
QUANTISED = "sharded, own head, FP8"
INTEGERS = "sharded, own head, 8-bit integers"
SHARDED = WIDE | {"tie_word_embeddings": False, "max_shard_size": "400KB"}
KINDS_BY_BLOCK = "kinds by block"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    QUANTISED: ("llama", SHARDED | {"intermediate_size": 128}),
    KINDS_BY_BLOCK: ("gemma3_text", WIDE | {"sliding_window": 8, "tie_word_embeddings": True}),
    "sharded, own head": ("llama", SHARDED),
    "tied": ("qwen2", WIDE | {"tie_word_embeddings": True}),
    "names without a prefix": ("gpt2", {"hidden_size": 128}),
    "another prefix": ("gpt_neox", {"hidden_size": 128}),
    "norms in other places": ("olmo2", WIDE),
    INTEGERS: ("llama", SHARDED | {"intermediate_size": 128}),
    "experts": (
        "qwen2_moe",
        WIDE
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "experts of another name": ("mixtral", WIDE | {"num_local_experts": 4}),
    "a family that no rule names": ("starcoder2", {"hidden_size": 128, "sliding_window": None}),
    "a family that no rule names, at another prefix": ("bloom", {"hidden_size": 128, "n_layer": 6}),
}


def job(folder: Path, load_format: str, **engine: Any) -> dict[str, Any]:
    return {
        "model": str(folder),
        "prompts": PROMPTS,
        "sampling": SAMPLING,
        "engine": {"load_format": load_format} | engine,
    }


def bytes_read(folder: Path, log: str) -> list[int]:
    """Of each rank that loaded the folder, as the loader logged it."""
    found = re.findall(rf"{re.escape(str(folder))}: read \d+ of \d+ tensors, ([\d,]+) bytes", log)
    return [int(number.replace(",", "")) for number in found]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([QUANTISED], id="one"),
        pytest.param([KINDS_BY_BLOCK], id="another", marks=pytest.mark.long),
        pytest.param(
            [*CASES][2:],
            id="all others",
            marks=pytest.mark.skipif(
                not os.environ.get("MI_PRUN_ALL_FAMILIES"), reason="minutes: MI_PRUN_ALL_FAMILIES=1"
            ),
        ),
    ],
)
def test_a_virtual_folder_says_what_the_written_one_says(
    in_engine: Callable[..., Any],
    tiny: Callable[..., Path],
    quantise: Callable[..., None],
    prune: Callable[..., Path],
    tmp_path: Path,
    names: list[str],
) -> None:
    """Log-probabilities of stock vLLM on the written checkpoint, of the loader on it, and of the virtual folder.

    That these are the dense model's without the blocks is tested where checkpoints are written. Last what is spoilt, so
    that nothing comes after it in the process.
    """
    cases = {name: CASES[name] for name in names}
    folders = []
    for number, (case, (model_type, fields)) in enumerate(cases.items()):
        dense = tiny(model_type, folder=f"dense-{number}", **fields)
        if case in (QUANTISED, INTEGERS):
            # Were the name of the one that is not quantised not to follow its block, loading would go wrong.
            quantise(dense, "float" if case == QUANTISED else "int", ["model.layers.5.mlp.down_proj"])
        written = prune(dense, tmp_path / f"written-{number}", DROPPED)
        folders.append((written, prune(dense, tmp_path / f"virtual-{number}", DROPPED, virtual=True)))
    jobs = [
        job(folder, load_format)
        for written, virtual in folders
        for folder, load_format in ((written, "auto"), (written, "mi_prun"), (virtual, "mi_prun"))
    ]
    found = in_engine(jobs + [job(folder, "mi_prun") | {"fails": True} for folder in spoilt(tiny, prune, tmp_path)])
    said = [result.get("log_probs") for result in found["results"]]
    for number, (case, (written, virtual)) in enumerate(zip(cases, folders, strict=True)):
        stock, ours, without = said[3 * number : 3 * number + 3]
        assert [len(row) for row in stock] == [23, 23, 23], case
        assert without == ours == stock, case
        kept_bytes = open_model(written).weight_bytes
        assert bytes_read(virtual, found["log"]) == bytes_read(written, found["log"]) == [kept_bytes], case
    changed, lacking = (result["error"] for result in found["results"][-2:])
    assert re.fullmatch(r"UserError: .* was made of another model than .* is now \(its config differ\).*", changed)
    assert "model.layers.2.input_layernorm.weight" in lacking


def spoilt(tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path) -> list[Path]:
    """Virtual folders that nobody but the loader has looked at: the dense model's config was changed, and a tensor was
    never there.
    """
    changed, lacking = tiny("llama", folder="changed", **WIDE), tiny("llama", folder="lacking", **WIDE)
    weights = load_file(lacking / "model.safetensors")
    del weights["model.layers.5.input_layernorm.weight"]  # of a linear layer vLLM would not notice
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    folders = [prune(dense, tmp_path / f"spoilt-{dense.name}", (1, 2, 3), virtual=True) for dense in (changed, lacking)]
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    return folders


@pytest.fixture(scope="module")
def prompts(reference: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reference)
    texts = ("The old man opened the door and went out to the sea.", "It was the best of times, it was the worst.")
    return [tokenizer(text)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def both(prune: Callable[..., Path], reference: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A written folder of the bundled model, and a virtual one: 8 blocks, so that each rank of a pipeline has 4."""
    folder, dropped = tmp_path_factory.mktemp("parallel"), (2, 3, 7, 8)
    return (
        prune(reference, folder / "written", dropped),
        prune(reference, folder / "virtual", dropped, virtual=True),
    )


@pytest.fixture(scope="module")
@torch.inference_mode()
def wanted(both: tuple[Path, Path], prompts: list[list[int]]) -> list[list[float]]:
    """What stock transformers says of the written folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(both[0], dtype=torch.float32).eval()

    def log_probs(tokens: list[int]) -> list[float]:
        places = torch.log_softmax(model(torch.tensor([tokens]), use_cache=False).logits[0, :-1], -1)
        return places.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()

    return list(map(log_probs, prompts))


def on_two_ranks(
    in_engine: Callable[..., Any],
    both: tuple[Path, Path],
    prompts: list[list[int]],
    **engine: Any,
) -> list[tuple[list[list[float]], list[int]]]:
    """Log-probabilities, and the bytes that each rank read: of the virtual folder, and of the written one."""
    folders = both[::-1]
    found = in_engine(
        [job(folder, "mi_prun", **engine) | {"prompts": prompts} for folder in folders],
        two_ranks=True,
    )
    return [
        (result["log_probs"], bytes_read(folder, found["log"]))
        for folder, result in zip(folders, found["results"], strict=True)
    ]


def close(found: list[list[float]], wanted: list[list[float]]) -> bool:
    """Sums are added in another order."""
    return all(row == pytest.approx(expected, abs=1e-4) for row, expected in zip(found, wanted, strict=True))


@pytest.mark.long
def test_tensor_parallel(
    in_engine: Callable[..., Any], both: tuple[Path, Path], prompts: list[list[int]], wanted: list[list[float]]
) -> None:
    found = on_two_ranks(in_engine, both, prompts, tensor_parallel_size=2)
    every_byte = open_model(both[0]).weight_bytes  # a rank cuts its share out of each tensor
    virtual, written = (said for said, _ in found)
    assert virtual == written
    for said, read in found:
        assert close(said, wanted)
        assert read == [every_byte, every_byte]


@pytest.mark.long
def test_pipeline_parallel(
    in_engine: Callable[..., Any], both: tuple[Path, Path], prompts: list[list[int]], wanted: list[list[float]]
) -> None:
    """Each rank reads its own four blocks, beside the embeddings (both: they are tied) and the norm (the last)."""
    # Compiled: with enforce_eager vLLM's own pipeline fails on CPU.
    pipeline = {"pipeline_parallel_size": 2, "enforce_eager": False}
    found = on_two_ranks(in_engine, both, prompts, **pipeline)
    tensors = open_model(both[0]).tensors
    block = sum(info.num_bytes for name, (_, info) in tensors.items() if name.startswith("model.layers.0."))
    embeddings, norm = (tensors[f"model.{name}.weight"][1].num_bytes for name in ("embed_tokens", "norm"))
    virtual, written = (said for said, _ in found)
    assert virtual == written
    for said, read in found:
        assert close(said, wanted)
        assert sorted(read) == [embeddings + 4 * block, embeddings + norm + 4 * block]
