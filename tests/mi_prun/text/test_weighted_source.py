"""Texts with weights: their names, and whose turn it is."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from mi_prun.errors import UserError
from mi_prun.text.weighted_source import WeightedSource, check_sources, names_of, parse_sources, text_files, turns


def test_a_text_has_weight_one_or_the_one_that_stands_behind_it() -> None:
    assert parse_sources(["wikitext", "a.txt=2.5"]) == (WeightedSource("wikitext"), WeightedSource("a.txt", 2.5))


def test_a_file_whose_name_has_an_equals_sign_is_one_text(tmp_path: Path) -> None:
    file = tmp_path / "seed=3"
    file.write_text("Three ships.")
    assert parse_sources([str(file)]) == (WeightedSource(str(file)),)
    assert parse_sources([f"{file}=2"]) == (WeightedSource(str(file), 2.0),)


def test_a_named_field_may_have_a_weight(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"body": "Three ships."}')
    assert parse_sources([f"{file}:body=2"]) == (WeightedSource(f"{file}:body", 2.0),)
    assert parse_sources([f"{file}:a=b"]) == (WeightedSource(f"{file}:a=b"),)
    assert text_files([f"{file}:body=2", "self"]) == [file]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its name is not UTF-8; rename it"):
        parse_sources([os.fsdecode(os.fsencode(tmp_path) + b"/text\xe8.txt")])


@pytest.mark.parametrize("text", ["a.txt=0", "a.txt=-1", "a.txt=nan", "a.txt=inf", "a.txt=x", "a.txt=", "=2"])
def test_a_weight_that_is_no_number_over_zero_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="the weight must be a number over 0"):
        parse_sources([text])


def test_a_text_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("Three ships.")
    assert check_sources([f"{tmp_path / 'there.txt'}=2", "self"]) == [str(tmp_path / "there.txt"), "self"]
    with pytest.raises(UserError, match=r"gone\.txt: no such file"):
        check_sources([str(tmp_path / "there.txt"), "gone.txt"])


def test_a_text_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="names a text twice"):
        parse_sources(["a.txt", "a.txt=2"])


def test_names_have_weights_where_there_are_several() -> None:
    assert names_of([("a.txt", 2.0)]) == "a.txt"
    assert names_of([("a.txt", 2.0), ("b.txt", 0.5)]) == "a.txt (2), b.txt (0.5)"


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1), (1, 2, 5), (7, 7, 1)])
def test_each_beginning_has_every_source_in_its_share(weights: tuple[int, ...]) -> None:
    taken = [0] * len(weights)
    for number, (source, place) in enumerate(islice(turns(weights), 3 * sum(weights)), 1):
        assert place == taken[source]
        taken[source] += 1
        shares = [weight * number / sum(weights) for weight in weights]
        assert all(abs(count - share) < 1 for count, share in zip(taken, shares, strict=True))
    assert taken == [3 * weight for weight in weights]
