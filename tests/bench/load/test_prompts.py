"""Prompts out of a text: as many as there are requests, of about the length asked for, and none twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.load.prompts import own_prompts, prompts_of
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


TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def rows(path: Path, *made: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def asked(words: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}]}


def test_a_chat_ends_where_the_answer_begins(folder: ModelFolder, tmp_path: Path) -> None:
    folder.tokenizer.chat_template = TEMPLATE
    own = own_prompts(folder, rows(tmp_path / "chats.jsonl", asked("Who are you?"), asked("Tell me a story.")))
    assert own.name == "chats.jsonl"
    bos = folder.tokenizer.bos_token
    assert own.texts == tuple(f"{bos}<user>{words}<assistant>" for words in ("Who are you?", "Tell me a story."))
    assert own.tokens == tuple(len(folder.tokenizer(text)["input_ids"]) for text in own.texts)


def test_a_template_brings_no_second_bos(folder: ModelFolder, tmp_path: Path) -> None:
    """The server puts one before a prompt, where the tokenizer does: the template's own is left out."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = folder.tokenizer
    tokenizer.chat_template = TEMPLATE
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    own = own_prompts(folder, rows(tmp_path / "chats.jsonl", asked("Who are you?")))
    assert own.texts == ("<user>Who are you?<assistant>",)
    assert tokenizer(own.texts[0])["input_ids"].count(bos[1]) == 1
    assert own.tokens == (len(tokenizer(own.texts[0])["input_ids"]),)


def test_rows_of_text_are_prompts_as_they_are(folder: ModelFolder, tmp_path: Path) -> None:
    own = own_prompts(folder, rows(tmp_path / "rows.jsonl", {"text": "Once upon"}, {"text": " "}, {"text": "A cat"}))
    assert own.texts == ("Once upon", "A cat")


def test_a_file_without_a_prompt_is_one_line(folder: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--prompts-from .*none\.jsonl: no such file; give JSON lines"):
        own_prompts(folder, tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"empty\.jsonl holds no prompt; give JSON lines"):
        own_prompts(folder, rows(tmp_path / "empty.jsonl"))
