"""Calibration text: three parts that never share text, as long as the text allows, the same text the same windows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.text.calibration import Calibration, begins_with_bos, load_calibration, load_mixture, tokens_digest

TEXT = " ".join(f"The year {n} brought {n * n % 97} ships to the harbour." for n in range(400))


@pytest.fixture
def tokenizer(reference: Path) -> Any:
    return open_model(reference).tokenizer


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "ships.txt").write_text(TEXT)
    return tmp_path / "ships.txt"


def load(source: Path, tokenizer: Any, **changes: int) -> Calibration:
    settings = {"window_tokens": 32, "scoring_tokens": 320, "ranking_tokens": 160, "held_out_tokens": 160, "seed": 0}
    return load_calibration(str(source), tokenizer, **(settings | changes))


def parts(calibration: Calibration) -> list[torch.Tensor]:
    return [windows.tokens for windows in (calibration.scoring, calibration.ranking, calibration.held_out)]


def test_the_parts_are_the_beginning_of_the_text_cut_in_three(text: Path, tokenizer: Any) -> None:
    calibration = load(text, tokenizer)
    assert [tuple(part.shape) for part in parts(calibration)] == [(10, 32), (5, 32), (5, 32)]
    ids = tokenizer(TEXT + "\n", add_special_tokens=False)["input_ids"]
    assert torch.cat(parts(calibration)).flatten().tolist() == ids[: 20 * 32]
    assert calibration.description.source == "ships.txt"  # no folder of this machine
    assert calibration.held_out.text == "ships.txt, held-out part"


def test_a_short_text_makes_every_part_shorter(text: Path, tokenizer: Any) -> None:
    ids = tokenizer(TEXT + "\n", add_special_tokens=False)["input_ids"]
    text.write_text(tokenizer.decode(ids[: 10 * 32 + 5]))
    calibration = load(text, tokenizer)
    assert [len(part) for part in parts(calibration)] == [6, 2, 2]
    assert calibration.description.wanted_tokens == 20 * 32
    assert calibration.description.scoring_tokens == 6 * 32


@pytest.mark.parametrize(("available", "counts"), [(30, [1, 27, 2]), (19, [1, 16, 2]), (12, [1, 9, 2]), (4, [1, 2, 1])])
def test_of_a_short_text_the_part_to_rank_on_gives_way_first(
    text: Path, tokenizer: Any, available: int, counts: list[int]
) -> None:
    ids = tokenizer(TEXT + "\n", add_special_tokens=False)["input_ids"]
    text.write_text(tokenizer.decode(ids[: available * 32 + 5]))
    made = load(text, tokenizer, scoring_tokens=32, ranking_tokens=32 * 27, held_out_tokens=64)
    assert [len(part) for part in parts(made)] == counts


@pytest.mark.parametrize("wanted", [(32, 32 * 27, 32), (32, 32, 32 * 27), (32 * 27, 32, 32)])
def test_three_windows_are_one_for_each_part(text: Path, tokenizer: Any, wanted: tuple[int, int, int]) -> None:
    ids = tokenizer(TEXT + "\n", add_special_tokens=False)["input_ids"]
    text.write_text(tokenizer.decode(ids[: 3 * 32 + 5]))
    scoring, ranking, held_out = wanted
    made = load(text, tokenizer, scoring_tokens=scoring, ranking_tokens=ranking, held_out_tokens=held_out)
    assert [len(part) for part in parts(made)] == [1, 1, 1]


def scattered(text: Path, tokenizer: Any, seed: int) -> Calibration:
    return load_calibration(
        str(text),
        tokenizer,
        window_tokens=32,
        scoring_tokens=64,
        ranking_tokens=256,
        held_out_tokens=64,
        seed=seed,
        scattered=True,
    )


def test_passages_come_from_all_over_a_long_text(text: Path, tokenizer: Any) -> None:
    """Each window is in the text, no two of them say the same, and another seed draws others."""
    text.write_text(" ".join(f"The year {n} brought {n * n % 97} ships to the harbour." for n in range(3_000)))
    calibration, again, other = (scattered(text, tokenizer, seed) for seed in (0, 0, 1))
    assert [tuple(part.shape) for part in parts(calibration)] == [(2, 32), (8, 32), (2, 32)]
    assert calibration.description == again.description
    assert calibration.description.fingerprint != other.description.fingerprint
    rows = [tokenizer.decode(row) for row in torch.cat(parts(calibration))]
    years = [set(re.findall(r"year (\d+) brought", row)) for row in rows]
    assert all(row in text.read_text() for row in rows)
    assert not any(a & b for a, b in combinations(years, 2))
    assert max(int(year) for year in set().union(*years)) > 1_500  # not its beginning


def test_a_text_that_is_not_so_long_is_taken_from_its_beginning(text: Path, tokenizer: Any) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    text.write_text(tokenizer.decode(ids[: 20 * 32]))
    calibration = scattered(text, tokenizer, seed=5)
    assert torch.cat(parts(calibration)).flatten().tolist() == ids[: 12 * 32]


@pytest.mark.parametrize("content", ["", "\n \n", "Three ships."])
def test_a_text_shorter_than_a_window_a_part_is_refused(text: Path, tokenizer: Any, content: str) -> None:
    text.write_text(content)
    for make in (load, partial(scattered, seed=0)):
        with pytest.raises(UserError, match="3 windows of 32 are needed"):
            make(text, tokenizer)


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
    calibration = load(text, tokenizer)
    assert calibration.description.bos
    tokens = torch.cat(parts(calibration))
    assert tokens.shape == (20, 32)
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    ids = tokenizer(TEXT + "\n", add_special_tokens=False)["input_ids"]
    assert tokens[:, 1:].flatten().tolist() == ids[: 20 * 31]


def test_chat_turns_are_calibration_text_in_the_words_of_the_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT[::-1]}]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in (turns, None, turns)))
    tokenizer.chat_template = "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }} {% endfor %}"
    chat = tokenizer.apply_chat_template(turns, tokenize=False)
    assert chat.startswith("[user] The year")
    (tmp_path / "chat.txt").write_text(f"{chat}\n\n\n{chat}")
    made, wanted = load(path, tokenizer), load(tmp_path / "chat.txt", tokenizer)
    assert made.description.fingerprint == wanted.description.fingerprint


def mixture(texts: Sequence[str], tokenizer: Any) -> Calibration:
    return load_mixture(
        texts, tokenizer, window_tokens=32, scoring_tokens=128, ranking_tokens=256, held_out_tokens=96, seed=0
    )


def test_one_text_is_no_mixture(text: Path, tokenizer: Any) -> None:
    alone = load(text, tokenizer, scoring_tokens=128, ranking_tokens=256, held_out_tokens=96)
    assert mixture([f"{text}=2"], tokenizer).description == alone.description


def test_each_text_gives_its_share_of_every_part_in_turns(text: Path, tokenizer: Any) -> None:
    """Three quarters of each part are ships, and each beginning of a part has both texts in their share."""
    other = text.with_name("birds.txt")
    other.write_text(TEXT.replace("ships", "birds"))
    made = mixture([f"{text}=3", str(other)], tokenizer)
    rows = [[tokenizer.decode(row) for row in part] for part in parts(made)]
    kinds = ["".join("s" if "ship" in row else "b" for row in part) for part in rows]
    assert kinds == ["ssbs", "ssbsssbs", "sbs"]
    assert not any(a & b for a, b in combinations([set(part) for part in rows], 2))
    assert made.description.source == "ships.txt (3), birds.txt (1)"
    assert made.held_out.text == "ships.txt (3), birds.txt (1), held-out part"
    assert [made.description.scoring_tokens, made.description.ranking_tokens] == [128, 256]
    assert made.description.fingerprint == tokens_digest(torch.cat(parts(made)))


def test_a_small_share_is_one_window_of_each_part(text: Path, tokenizer: Any) -> None:
    other = text.with_name("birds.txt")
    other.write_text(TEXT.replace("ships", "birds"))
    made = mixture([f"{text}=100", str(other)], tokenizer)
    assert [sum("bird" in tokenizer.decode(row) for row in part) for part in parts(made)] == [1, 1, 1]


def test_a_file_that_is_not_there_is_refused_before_text_is_sampled(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: no such file"):
        mixture(["self", "gone.txt"], tokenizer)  # without a model, which sampling needs
