"""The reader: names, tensors, and what is not read; by its own count and by the kernel's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model, read_config
from mi_prun.recovery.adapter import read_adapter
from mi_prun.recovery.heal import heal_folder
from mi_prun.settings import HealSettings
from vllm_ext import kept_weights as kept_weights_module
from vllm_ext.kept_weights import TORCH_DTYPES, Buffers, LoadProgress, kept_weights

DROPPED = (1, 2, 5)
KEPT = (0, 3, 4)
# 6 blocks of 2 MB, so that what the kernel reads ahead around a tensor is small beside it.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}


def read(folder: Path, kept: Sequence[int] | None, **options: Any) -> tuple[dict[str, torch.Tensor], LoadProgress]:
    reading = LoadProgress()
    found = {name: t.clone() for name, t in kept_weights(folder, read_config(folder), kept, reading, **options)}
    return found, reading


@pytest.fixture
def sharded(tiny: Callable[..., Path]) -> Path:
    return tiny("llama", max_shard_size="2MB", tie_word_embeddings=False, **WIDE)


@pytest.mark.parametrize("max_shard_size", ["5GB", "200KB"])
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "gpt2"])
def test_they_are_what_the_checkpoint_writer_writes(
    tiny: Callable[..., Path], prune: Callable[..., Path], tmp_path: Path, model_type: str, max_shard_size: str
) -> None:
    dense = tiny(model_type, max_shard_size=max_shard_size)
    pruned = prune(dense, tmp_path / "pruned", DROPPED)
    wanted = {name: t for file in pruned.glob("*.safetensors") for name, t in load_file(file).items()}
    for found, reading in (read(dense, KEPT), read(pruned, None), read(pruned, None, mapped=True)):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert reading.bytes == sum(tensor.nbytes for tensor in wanted.values())
        assert reading.tensors == len(wanted)


def test_a_tensor_that_is_kept_is_not_written_over(sharded: Path) -> None:
    """Memory is used again only when no tensor lies in it, a view of one included."""
    wanted, _ = read(sharded, KEPT)
    held: dict[str, torch.Tensor] = {}
    for name, tensor in kept_weights(sharded, read_config(sharded), KEPT, LoadProgress()):
        if len(held) < 6 or len(name) % 2:
            held[name] = tensor[1:]
    assert len(held) > 6
    assert all(torch.equal(tensor, wanted[name][1:]) for name, tensor in held.items())


def test_memory_is_used_again() -> None:
    buffers = Buffers()
    first = torch.from_numpy(buffers.take(100)).view(torch.float32)
    place = first.data_ptr()
    other = torch.from_numpy(buffers.take(100))
    assert other.data_ptr() != place
    del first
    assert torch.from_numpy(buffers.take(50)).data_ptr() == place


def test_a_file_without_kept_tensors_is_not_opened(sharded: Path) -> None:
    """It may even be missing: that is what lets a hub id download less."""
    homes: dict[str, set[str]] = {}
    for name, file in json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"].items():
        homes.setdefault(file, set()).add(name)
    gone = tuple(f"model.layers.{block}." for block in DROPPED)
    skipped = {file for file, names in homes.items() if all(name.startswith(gone) for name in names)}
    assert skipped
    for file in skipped:
        (sharded / file).unlink()
    _, reading = read(sharded, KEPT)
    assert set(reading.files_skipped) == skipped
    assert set(reading.files) == homes.keys() - skipped
    assert reading.tensors + reading.tensors_skipped == sum(map(len, homes.values()))


def test_a_process_reads_only_what_it_wants(sharded: Path) -> None:
    found, reading = read(sharded, KEPT, wanted=lambda name: name.startswith("model.layers.2."))
    assert {name.split(".")[2] for name in found} == {"2"}
    dense = open_model(sharded)
    block = sum(i.num_bytes for n, (_, i) in dense.tensors.items() if n.startswith("model.layers.4."))
    assert reading.bytes == block


def test_the_kernel_counts_kept_bytes_only(sharded: Path) -> None:
    """A process of its own, the files' pages evicted before: what it fetched from the disk is what was kept."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from mi_prun.model.model_folder import read_config\n"
        "from vllm_ext.kept_weights import LoadProgress, kept_weights\n"
        "folder, kept = Path(sys.argv[1]), eval(sys.argv[2])\n"
        "config = read_config(folder)\n"
        "for file in folder.glob('*.safetensors'):\n"
        "    fd = os.open(file, os.O_RDONLY)\n"
        "    os.fsync(fd)\n"
        "    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "    os.close(fd)\n"
        "def counters():\n"
        "    lines = Path('/proc/self/io').read_text().splitlines()\n"
        "    return {name: int(value) for name, value in (line.split(': ') for line in lines)}\n"
        "before, reading = counters(), LoadProgress()\n"
        "for name, tensor in kept_weights(folder, config, kept, reading):\n"
        "    tensor.clone()\n"
        "after = counters()\n"
        "print(after['read_bytes'] - before['read_bytes'], after['rchar'] - before['rchar'], reading.bytes)\n"
    )

    def measure(kept: Sequence[int]) -> tuple[int, int, int]:
        command = [sys.executable, "-c", program, str(sharded), repr(tuple(kept))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        fetched, asked, counted = map(int, done.stdout.split())
        return fetched, asked, counted

    total = sum(file.stat().st_size for file in sharded.glob("*.safetensors"))
    fetched, asked, counted = measure(KEPT)
    dropped = total - counted
    assert dropped > total // 3
    assert counted < asked < counted + 100_000  # headers and the index
    if measure(range(6))[0] < total // 2:
        pytest.skip("what this file system reads is not counted, or its pages cannot be evicted")
    assert counted * 0.95 < fetched < counted + 500_000  # whole pages, and modules imported late


@pytest.mark.parametrize("ahead_bytes", [1, 1 << 20, 1 << 40])
def test_the_wanted_byte_ranges_and_no_other_are_asked_for_ahead(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, ahead_bytes: int
) -> None:
    """Each once, and before the tensor is handed out, however little may be on its way."""
    asked: list[tuple[str, int, int]] = []
    advise = os.posix_fadvise

    def record(fd: int, begin: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            asked.append((Path(f"/proc/self/fd/{fd}").readlink().name, begin, length))
        advise(fd, begin, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", record)
    monkeypatch.setattr(kept_weights_module, "AHEAD_BYTES", ahead_bytes)
    dense = open_model(sharded)
    count = 0
    for count, _ in enumerate(kept_weights(sharded, read_config(sharded), KEPT, LoadProgress()), start=1):
        assert len(asked) >= count
    gone = tuple(f"model.layers.{block}." for block in DROPPED)
    wanted = [(path.name, i.begin, i.num_bytes) for n, (path, i) in dense.tensors.items() if not n.startswith(gone)]
    assert sorted(asked) == sorted(wanted)
    assert count == len(wanted)


@pytest.mark.parametrize(("kept", "said"), [((0, 6), r"within 0\.\.5"), ((3, 0), "ascending"), ((), "no block")])
def test_a_kept_list_that_does_not_fit(sharded: Path, kept: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(sharded, kept)


def test_a_tensor_that_the_index_names_but_the_file_lacks(sharded: Path) -> None:
    file = sharded / json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    save_file({name: t for name, t in load_file(file).items() if name != "lm_head.weight"}, file)
    with pytest.raises(UserError, match=rf"the index says 'lm_head\.weight' lies in {file.name}, but it does not"):
        read(sharded, KEPT)


def test_a_shard_that_is_broken_or_missing(sharded: Path) -> None:
    first = min(sharded.glob("*.safetensors"))
    os.truncate(first, first.stat().st_size - 1)
    with pytest.raises(UserError, match=rf"{first.name}: .*truncated"):
        read(sharded, KEPT)
    first.unlink()
    with pytest.raises(UserError, match=rf"cannot read .*{first.name}"):
        read(sharded, KEPT)


def test_every_dtype(reference: Path, tmp_path: Path) -> None:
    """Those of the table, and one that only the library knows."""
    shutil.copy(reference / "config.json", tmp_path)
    made = {f"model.norm.{name}": torch.arange(4).to(dtype) for name, dtype in TORCH_DTYPES.items()}
    made["model.norm.F4"] = torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    made["model.norm.scalar"] = torch.tensor(2.5)
    made["model.norm.empty"] = torch.empty(0, 3)
    save_file(made, tmp_path / "model.safetensors")
    found, _ = read(tmp_path, None)
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


def test_no_weights(sharded: Path) -> None:
    for file in sharded.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(UserError, match="has no weights"):
        read(sharded, KEPT)


def test_an_adapter_is_merged_into_what_is_read_as_the_written_folder_has_it(
    reference: Path, prune: Callable[..., Path], tmp_path: Path
) -> None:
    from pydoc_data.topics import topics

    prose = list(topics.values())
    texts = [tmp_path / name for name in ("one.txt", "two.txt")]
    for number, text in enumerate(texts):
        text.write_text("\n\n\n".join(prose[number::2]))
    settings = HealSettings(
        sources=tuple(map(str, texts)), tokens=512, window_tokens=32, batch_tokens=256, fit_tokens=4_096,
        gate_tokens=256, validation_tokens=64, rank=4, device="cpu",
    )  # fmt: skip
    pruned = prune(reference, tmp_path / "pruned", (4, 5))
    manifest = heal_folder(pruned, tmp_path / "healed", settings, adapter=tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter", manifest.plan)
    config = read_config(reference)
    read = dict(kept_weights(reference, config, manifest.plan.kept, LoadProgress(), healed=adapter))
    written = dict(kept_weights(tmp_path / "healed", read_config(tmp_path / "healed"), None, LoadProgress()))
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], written[name]) for name in written)
