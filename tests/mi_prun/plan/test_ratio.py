from __future__ import annotations

import math

import pytest

from mi_prun.errors import UserError
from mi_prun.model.identity import ModelIdentity
from mi_prun.plan.ratio import (
    blocks_for_number,
    blocks_for_param_ratio,
    blocks_for_ratio,
    only_one,
    parse_blocks,
    parse_ratios,
)

DENSE = ModelIdentity(
    name="m",
    model_type="llama",
    num_blocks=4,
    num_parameters=1000,
    block_parameters=(100, 100, 200, 100),
    config_sha256="",
    weights_sha256="",
)


@pytest.mark.parametrize(("ratio", "num_blocks", "k"), [(0.25, 32, 8), (0.1, 12, 1), (0.125, 12, 2), (0.97, 40, 39)])
def test_a_ratio_rounds_to_blocks(ratio: float, num_blocks: int, k: int) -> None:
    assert blocks_for_ratio(ratio, num_blocks) == k


@pytest.mark.parametrize(
    ("text", "blocks"), [("0,.125,.25,.375,.5", [3, 6, 9, 12]), (".5,.25,0.25", [6, 12]), (".25", [6])]
)
def test_ratios_as_numbers_of_blocks(text: str, blocks: list[int]) -> None:
    assert parse_ratios(text, 24, dense=True) == blocks


@pytest.mark.parametrize("text", ["nan", "-.25", "inf", "1.5", "x", "", "0", "1", "0,.01,.9"])
@pytest.mark.parametrize("dense", [False, True])
def test_ratios_that_are_none(text: str, dense: bool) -> None:
    with pytest.raises(UserError, match="--ratios"):
        parse_ratios(text, 24, dense=dense)


def test_the_dense_model_is_no_ratio_unless_asked_for() -> None:
    with pytest.raises(UserError, match=r"--ratios must be in \(0, 1\), got 0"):
        parse_ratios("0,.25", 24)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -0.1, math.nan, math.inf])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"--ratio must be in \(0, 1\), got"):
        blocks_for_ratio(ratio, 12)


def test_a_ratio_that_rounds_to_nothing_or_everything_is_refused() -> None:
    with pytest.raises(UserError, match="rounds to no block"):
        blocks_for_ratio(0.03, 12)
    with pytest.raises(UserError, match="rounds to all blocks"):
        blocks_for_ratio(0.97, 12)


@pytest.mark.parametrize("k", [0, 12, -1])
def test_a_number_of_blocks_outside_its_range_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=r"--num-blocks must be in 1..11"):
        blocks_for_number(k, 12)


def test_a_share_of_parameters_never_passes_its_budget_whichever_blocks_go() -> None:
    assert blocks_for_param_ratio(0.35, DENSE) == 2  # 200 + 100 fit in 350
    assert blocks_for_param_ratio(0.2, DENSE) == 1
    with pytest.raises(UserError, match="less than one block"):
        blocks_for_param_ratio(0.15, DENSE)


def test_blocks_named_by_hand() -> None:
    assert parse_blocks("5,6,9", 12) == (5, 6, 9)
    assert parse_blocks("9, 5-6", 12) == (5, 6, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a block index"),
        ("a", "not a block index"),
        ("1,12", "0..11"),
        ("3,3", "names block 3 twice"),
        ("0-11", "all 12 blocks"),
        ("5-3", "runs backwards"),
        ("-1", "not a block index"),
    ],
)
def test_blocks_named_wrongly_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_blocks(text, 12)


def test_exactly_one_way_to_say_how_many() -> None:
    assert only_one({"--ratio": None, "--num-blocks": 3}) == "--num-blocks"
    with pytest.raises(UserError, match="found none"):
        only_one({"--ratio": None, "--num-blocks": None})
    with pytest.raises(UserError, match="found --ratio and --num-blocks"):
        only_one({"--ratio": 0.1, "--num-blocks": 3})
