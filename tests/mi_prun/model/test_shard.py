from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mi_prun.errors import UserError
from mi_prun.model.shard import read_shard

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "U8", "shape": [4], "data_offsets": [24, 28]}


def write(path: Path, header: object, data: bytes = b"\0" * 28, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_reads_what_the_safetensors_library_writes(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.ones((), np.int64), "none": np.zeros((0, 4))}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    shard = read_shard(tmp_path / "x.safetensors")
    assert shard.metadata == {"format": "pt"}
    data = (tmp_path / "x.safetensors").read_bytes()
    assert {name: info.shape for name, info in shard.tensors.items()} == {n: t.shape for n, t in tensors.items()}
    for name, info in shard.tensors.items():
        assert data[info.begin : info.end] == tensors[name].tobytes()
        assert info.num_bytes == tensors[name].nbytes
        assert info.num_elements == tensors[name].size
    assert shard.num_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_a_right_header_is_read(tmp_path):
    assert list(read_shard(write(tmp_path / "x", {"b": B, "a": A})).tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 50_000, "not valid JSON"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b'{"a\xff": 1}', "not valid JSON"),
        ({"__metadata__": {"format": 1}, "a": A, "b": B}, "not a map of strings"),
        ({"__metadata__": [], "a": A, "b": B}, "not a map of strings"),
        ({"a": []}, "not an object"),
        ({"a": A | {"more": 1}, "b": B}, "the header entry has the fields"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [28], "data_offsets": [0, 28]}}', "not valid Unicode"),
        ({"a": A | {"dtype": "F33"}, "b": B}, "unknown dtype 'F33'"),
        ({"a": A | {"dtype": ["F32"]}, "b": B}, "unknown dtype"),
        ({"a": A | {"shape": [2, -3]}, "b": B}, "not a list of whole numbers"),
        ({"a": A | {"shape": [2, True]}, "b": B}, "not a list of whole numbers"),
        ({"a": A | {"shape": [6.0]}, "b": B}, "not a list of whole numbers"),
        ({"a": A | {"shape": [2**64, 2**64]}, "b": B}, "not a list of whole numbers"),
        ({"a": A | {"shape": [2**62, 2**62]}, "b": B}, "does not fill"),
        ({"a": A | {"shape": [2, 4]}, "b": B}, "does not fill"),
        ({"a": A | {"data_offsets": [24, 0]}, "b": B}, r"not \[begin, end\]"),
        ({"a": A | {"data_offsets": [0]}, "b": B}, r"not \[begin, end\]"),
        ({"a": A | {"data_offsets": [-8, 16]}, "b": B}, r"not \[begin, end\]"),
        ({"a": A, "b": B | {"data_offsets": [20, 24]}}, "overlaps another or leaves a gap"),
        ({"a": A | {"data_offsets": [4, 28]}, "b": B | {"data_offsets": [28, 32]}}, "overlaps another or leaves a gap"),
        ({"a": A}, "longer than its header says"),
        ({"a": A, "b": B, "c": B | {"data_offsets": [28, 32]}}, "truncated"),
        ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, "does not fill"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, fault):
    with pytest.raises(UserError, match=fault) as caught:
        read_shard(write(tmp_path / "x.safetensors", header))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [29 + 10**3, 2**40, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused_before_it_is_allocated(tmp_path, length):
    with pytest.raises(UserError, match=r"header claims .* truncated or not safetensors"):
        read_shard(write(tmp_path / "x.safetensors", {}, length=length))


@pytest.mark.parametrize("size", [0, 7, 8, 60, 200])
def test_a_truncated_file_is_refused(tmp_path, size):
    whole = write(tmp_path / "x.safetensors", {"a": A, "b": B}).read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[: min(size, len(whole) - 1)])
    with pytest.raises(UserError, match="truncated"):
        read_shard(tmp_path / "x.safetensors")


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        read_shard(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_shard(tmp_path)
