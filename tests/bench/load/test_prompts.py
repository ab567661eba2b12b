"""Prompts out of a text: as many as there are requests, of about the length asked for, and none twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.load.prompts import prompts_of
from mi_prun.errors import UserError
from mi_prun.model.model_folder import ModelFolder, open_model


@pytest.fixture
def folder(reference: Path) -> ModelFolder:
    return open_model(reference)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(" ".join(f"Chapter {number} of the story." for number in range(400)))
    return path


def test_each_round_has_its_own_pieces_of_the_text(folder: ModelFolder, text: Path) -> None:
    name, rounds = prompts_of(folder, str(text), (3, 0, 5), 16)
    assert name == "story.txt"  # a record names no folder of the machine
    assert [len(pieces) for pieces in rounds] == [3, 0, 5]
    pieces = [piece for round_pieces in rounds for piece in round_pieces]
    assert len(set(pieces)) == 8
    assert all(piece.strip() in text.read_text() for piece in pieces)
    lengths = [len(folder.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces]
    assert all(14 <= length <= 18 for length in lengths)
    assert prompts_of(folder, str(text), (8,), 16)[1] == [pieces]  # the same text gives the same pieces


def test_a_text_that_is_too_short_is_said_with_the_way_out(folder: ModelFolder, text: Path) -> None:
    with pytest.raises(UserError, match=r"story\.txt gives \d+ prompts of 64 tokens, and 900 are asked for: give more"):
        prompts_of(folder, str(text), (450, 450), 64)


def test_text_sampled_from_the_model_is_refused(folder: ModelFolder) -> None:
    with pytest.raises(UserError, match="--text self would need the model in this process too; name a file"):
        prompts_of(folder, "self", (1,), 16)
