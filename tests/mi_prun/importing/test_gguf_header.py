"""The header of a GGUF file: what is said of it is checked against the file."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_prun.errors import UserError
from mi_prun.importing.gguf_header import MOST_ENTRIES, GgufHeader, read_gguf_header

SIZES = {0: (1, 4), 8: (32, 34)}  # F32 and Q8_0


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = entry("general.architecture", 8, string("llama"))


def file(
    entries: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    count = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *count) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def read(folder: Path, data: bytes, name: str = "model.gguf") -> GgufHeader:
    path = folder / name
    path.write_bytes(data)
    return read_gguf_header(path, SIZES)


def test_metadata_and_tensors(tmp_path: Path) -> None:
    entries = [
        ARCHITECTURE,
        entry("a.number", 4, struct.pack("<I", 7)),
        entry("a.flag", 7, b"\1"),
        entry("a.words", 9, struct.pack("<IQ", 8, 2) + string("x") + string("yz")),
        entry("a.numbers", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3)),
    ]
    header = read(tmp_path, file(entries, [tensor("w", (4, 2)), tensor("q", (32, 3), 8, 32)], bytes(32 + 3 * 34)))
    assert header.architecture == "llama"
    assert dict(header.metadata) == {
        "general.architecture": "llama", "a.number": 7, "a.flag": True, "a.words": ["x", "yz"], "a.numbers": [1, -2, 3],
    }  # fmt: skip
    assert header.whole("a.number") == 7
    assert header.whole("a.flag") is None
    assert header.text("a.number") is None
    assert [(t.name, t.shape, t.num_elements) for t in header.tensors] == [("w", (2, 4), 8), ("q", (3, 32), 96)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF\3", "truncated"),
        (file([ARCHITECTURE], [tensor("w", (4,))], bytes(16), version=1), "GGUF version 1"),
        (file([ARCHITECTURE], [tensor("w", (4,))], bytes(16), version=3 << 24), "GGUF version"),  # big-endian
        (file([], [tensor("w", (4,))], bytes(16)), "does not say its general.architecture"),
        (file([ARCHITECTURE, ARCHITECTURE], [tensor("w", (4,))], bytes(16)), "stands twice"),
        (file([ARCHITECTURE], []), "holds no tensor"),
        (file([ARCHITECTURE], [tensor("w", (4,))], bytes(15)), "ends at byte"),
        (file([ARCHITECTURE], [tensor("w", (4,), offset=2**62)], bytes(16)), "ends at byte"),
        (file([ARCHITECTURE], [tensor("w", (2**40, 2**40))], bytes(16)), "ends at byte"),
        (file([ARCHITECTURE], [tensor("w", (4,)), tensor("v", (4,))], bytes(32)), "overlaps"),
        (file([ARCHITECTURE], [tensor("w", (4,), offset=4)], bytes(32)), "not aligned"),
        (file([ARCHITECTURE], [tensor("w", (4,)), tensor("w", (4,), offset=32)], bytes(64)), "name stands twice"),
        (file([ARCHITECTURE], [tensor("w", (4,), 99)], bytes(64)), "GGML type 99"),
        (file([ARCHITECTURE], [tensor("w", (33,), 8)], bytes(64)), "blocks of 32"),
        (file([ARCHITECTURE], [tensor("w", (1,) * 5)], bytes(64)), "has 5 dimensions"),
        (file([ARCHITECTURE], [tensor("w", (4,))], bytes(16), counts=(2**60, 1)), "stands twice|header|dimensions"),
        (file([ARCHITECTURE], [tensor("w", (4,))], bytes(16), counts=(1, 2**60)), "stands twice|header"),
        (file([ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 8, 2**61))], [], b""), "more bytes"),
        (file([ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 4, 2**61))], [], b""), "more bytes"),
        (file([ARCHITECTURE, entry("a", 77, b"")], [], bytes(16)), "unknown type 77"),
        (file([ARCHITECTURE, entry("a", 8, struct.pack("<Q", 1) + b"\xff")], [], b""), "not UTF-8"),
        (file([ARCHITECTURE, entry("general.alignment", 4, b"\7\0\0\0")], [tensor("w", (4,))], bytes(99)), "power"),
        (file([ARCHITECTURE, entry("split.count", 2, b"\3\0")], [tensor("w", (4,))], bytes(16)), "of 3 files"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, data)


def test_arrays_without_end_are_refused(tmp_path: Path) -> None:
    """A byte in the file would take 40 in memory."""
    half = MOST_ENTRIES // 2
    numbers = [entry(key, 9, struct.pack("<IQ", 0, half) + bytes(half)) for key in ("a", "b")]
    tensors = [tensor("w", (4,))]
    assert len(read(tmp_path, file([ARCHITECTURE, *numbers], tensors, bytes(16))).metadata) == 3
    one = entry("c", 9, struct.pack("<IQ", 0, 1) + bytes(1))
    with pytest.raises(UserError, match=f"arrays of its metadata have {MOST_ENTRIES + 1:,} entries or more"):
        read(tmp_path, file([ARCHITECTURE, *numbers, one], tensors, bytes(16)))


def test_names_of_parts(tmp_path: Path) -> None:
    whole = file([ARCHITECTURE], [tensor("w", (4,))], bytes(16))
    with pytest.raises(UserError, match=r"one of 3 files .* llama-gguf-split --merge"):
        read(tmp_path, whole, "model-00001-of-00003.gguf")
    with pytest.raises(UserError, match=r"cat model.gguf.\* > model.gguf"):
        read(tmp_path, whole, "model.gguf.part00")
    assert read(tmp_path, whole, "model-00001-of-00001.gguf").tensors
    with pytest.raises(UserError, match="no such file"):
        read_gguf_header(tmp_path / "none.gguf", SIZES)
    with pytest.raises(UserError, match="is a folder"):
        read_gguf_header(tmp_path, SIZES)


@given(st.data())
def test_any_damage_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever a byte of the header is changed to: a header that fits in the file, or one line."""
    whole = bytearray(file([ARCHITECTURE, entry("a.words", 9, struct.pack("<IQ", 8, 1) + string("x"))],
                           [tensor("w", (4, 2)), tensor("q", (32,), 8, 32)], bytes(66)))  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 67))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    try:
        header = read(tmp_path_factory.getbasetemp(), bytes(whole[:end]))
    except UserError:
        return
    assert sum(t.num_elements // SIZES[t.kind][0] * SIZES[t.kind][1] for t in header.tensors) <= end
