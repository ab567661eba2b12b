"""Calibration text: three parts that never share text, as long as the text allows, the same text the same windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mi_prun.block_model import load_tokenizer
from mi_prun.calibration import Calibration, begins_with_bos, load_calibration
from mi_prun.errors import UserError
from mi_prun.model import open_model

TEXT = " ".join(f"The year {n} brought {n * n % 97} ships to the harbour." for n in range(400))


@pytest.fixture
def tokenizer(reference: Path) -> Any:
    return load_tokenizer(open_model(reference))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "ships.txt").write_text(TEXT)
    return tmp_path / "ships.txt"


def load(source: Path, tokenizer: Any, **changes: int) -> Calibration:
    settings = {"window_tokens": 32, "scoring_tokens": 320, "ranking_tokens": 160, "held_out_tokens": 160, "seed": 0}
    return load_calibration(str(source), tokenizer, **(settings | changes))


def parts(found: Calibration) -> list[torch.Tensor]:
    return [windows.tokens for windows in (found.scoring, found.ranking, found.held_out)]


def test_the_parts_are_the_beginning_of_the_text_cut_in_three(text: Path, tokenizer: Any) -> None:
    found = load(text, tokenizer)
    assert [tuple(part.shape) for part in parts(found)] == [(10, 32), (5, 32), (5, 32)]
    ids = tokenizer(TEXT + "\n", add_special_tokens=False)["input_ids"]
    assert torch.cat(parts(found)).flatten().tolist() == ids[: 20 * 32]
    assert found.description.source == "ships.txt"  # no folder of this machine
    assert found.held_out.text == "ships.txt, held out part"


def test_a_short_text_makes_every_part_shorter(text: Path, tokenizer: Any) -> None:
    ids = tokenizer(TEXT + "\n", add_special_tokens=False)["input_ids"]
    text.write_text(tokenizer.decode(ids[: 10 * 32 + 5]))
    found = load(text, tokenizer)
    assert [len(part) for part in parts(found)] == [6, 2, 2]
    assert found.description.wanted_tokens == 20 * 32
    assert found.description.scoring_tokens == 6 * 32


@pytest.mark.parametrize("content", ["", "\n \n", "Three ships."])
def test_a_text_shorter_than_a_window_a_part_is_refused(text: Path, tokenizer: Any, content: str) -> None:
    text.write_text(content)
    with pytest.raises(UserError, match="3 windows of 32 are needed"):
        load(text, tokenizer)


def test_the_fingerprint_is_of_the_tokens(text: Path, tokenizer: Any) -> None:
    first = load(text, tokenizer).description
    assert load(text, tokenizer).description == first
    text.write_text(TEXT.replace("ships", "boats"))
    assert load(text, tokenizer).description.fingerprint != first.fingerprint


def test_windows_begin_with_bos_where_the_tokenizer_begins_a_text_with_it(text: Path, tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    assert not begins_with_bos(tokenizer)
    assert not load(text, tokenizer).description.bos
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert begins_with_bos(tokenizer)
    found = load(text, tokenizer)
    assert found.description.bos
    tokens = torch.cat(parts(found))
    assert tokens.shape == (20, 32)
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    ids = tokenizer(TEXT + "\n", add_special_tokens=False)["input_ids"]
    assert tokens[:, 1:].flatten().tolist() == ids[: 20 * 31]
