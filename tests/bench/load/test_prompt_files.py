"""Prompts of loads that bring their own: the same on every engine, and none used twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.load.prompt_files import Prompts, row_prompts, text_prompts
from bench.load.prompts import OwnPrompts
from bench.load.trace import Request
from bench.records.schema import PointRecord, Trace
from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model


def test_pieces_of_a_text(reference: Path, point: Callable[..., PointRecord], tmp_path: Path) -> None:
    text = tmp_path / "licence.txt"
    text.write_text(" ".join(f"Chapter {number} of the story." for number in range(400)))
    load = point().load.model_copy(update={"input_tokens": 8.0, "prompts": 3, "warmups": 2, "text": "licence.txt"})
    other = load.model_copy(update={"preset": "other", "input_tokens": 16.0})
    name, pieces = text_prompts(open_model(reference), str(text), [load, load, other], 4)
    assert name == "licence.txt"
    assert list(pieces) == ["chat", "other"]
    assert (len(pieces["chat"]) >= 28, len(pieces["other"]) >= 14) == (True, True)
    prompts = Prompts([], pieces)
    seen = []
    for seed in (5, 6, 5):
        prompts.write(tmp_path / "out.jsonl", load, seed)
        seen.append([json.loads(line)["prompt"] for line in (tmp_path / "out.jsonl").read_text().splitlines()])
    assert seen[0] == seen[2]
    assert len(set(seen[0] + seen[1])) == 6
    with pytest.raises(UserError, match="asked for: give more text"):
        text_prompts(open_model(reference), str(text), [load.model_copy(update={"prompts": 900})], 4)


def test_requests_of_a_trace(point: Callable[..., PointRecord], tmp_path: Path) -> None:
    load = point().load.model_copy(update={"prompts": 3, "trace": Trace(name="a.csv", sha256="0" * 64, requests=1)})
    Prompts([Request(20, 5)], {}).write(tmp_path / "out.jsonl", load, 7)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["input_length"] for line in lines] == [20, 20, 20]


def test_prompts_with_their_own_lengths(point: Callable[..., PointRecord]) -> None:
    """Each is used once, in all loads together."""
    load = point().load.model_copy(update={"prompts": 3, "warmups": 2})
    own = OwnPrompts("chats.jsonl", tuple(map(str, range(16))), (1,) * 16)
    assert row_prompts(own, [load, load], 2) == {load.preset: own.texts}
    with pytest.raises(UserError, match=r"chats\.jsonl has 16 prompts, and 22 are asked for, warm-ups included: give"):
        row_prompts(own, [load, load], 3)
