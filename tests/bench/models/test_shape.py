"""Shapes: real configs without weights, and a tokenizer that makes n tokens of n words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.models.shape import SHAPES, open_shape, shape_flags, spread, tokenizer_files, write_shape
from mi_prun.architecture.architecture import num_blocks
from mi_prun.errors import UserError


def test_every_named_shape_is_of_a_known_family() -> None:
    for name in SHAPES:
        assert num_blocks(open_shape(name)) >= 16


def test_a_shape_out_of_any_config(tmp_path: Path, dense: Path) -> None:
    config = open_shape(str(dense / "config.json"))
    assert config == open_shape(str(dense))
    assert num_blocks(config) == 4
    write_shape(config, (0, 2), tmp_path / "shape")
    assert num_blocks(open_shape(str(tmp_path / "shape"))) == 2
    assert shape_flags(tmp_path / "shape")[:2] == ["--load-format", "dummy"]


def test_what_is_no_shape(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--shape gpt-9: no such file, and none of llama-3\.2-1b"):
        open_shape("gpt-9")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "martian", "num_hidden_layers": 2}))
    with pytest.raises(UserError, match="model_type 'martian' is not supported"):
        open_shape(str(tmp_path))


def test_blocks_to_drop_are_spread() -> None:
    assert spread(24, 6) == (2, 6, 10, 14, 18, 22)
    assert spread(24, 0) == ()
    assert spread(5, 4) == (0, 1, 3, 4)
    for count in range(2, 40):
        for k in range(1, count):
            assert len(set(spread(count, k))) == k
            assert 0 <= min(spread(count, k)) <= max(spread(count, k)) < count


def test_n_words_are_n_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, data in tokenizer_files(1000).items():
        (tmp_path / name).write_text(json.dumps(data))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    tokens = [5, 999, 1, 1, 17]
    assert len(tokenizer) == 1000
    assert tokenizer(tokenizer.decode(tokens))["input_ids"] == tokens
