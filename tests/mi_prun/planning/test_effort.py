"""How much text candidates are ranked on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mi_prun.analysis.analysis import Analysis
from mi_prun.planning.effort import LEAST_TOKENS, ranking_tokens, with_short_ranking

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_small_model_and_an_accelerator_rank_on_all_of_the_text() -> None:
    assert ranking_tokens(9_312_512, CPU, 65_536) == 65_536
    assert ranking_tokens(8_000_000_000, GPU, 65_536) == 65_536


def test_a_larger_model_ranks_on_less_on_a_cpu_and_never_on_too_little() -> None:
    assert LEAST_TOKENS <= ranking_tokens(134_515_008, CPU, 65_536) < 8_192
    assert ranking_tokens(8_000_000_000, CPU, 65_536) == LEAST_TOKENS
    assert ranking_tokens(8_000_000_000, CPU, 1_000) == 1_000


def analysis_of(reference: Analysis, shape: tuple[int, int]) -> Analysis:
    """A model of SmolLM2's size, with ranking text of this shape."""
    dense = reference.record.dense.model_copy(update={"num_parameters": 134_515_008})
    windows = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    return dataclasses.replace(reference, record=reference.record.model_copy(update={"dense": dense}), ranking=windows)


@pytest.mark.parametrize(
    ("shape", "least"), [((8, 2048), 7_000), ((4, 2048), 6_000), ((2, 32768), 7_000), ((1, 2048), 2_048)]
)
def test_windows_are_not_cut_where_there_are_no_more_of_them(
    reference_analysis: Analysis, shape: tuple[int, int], least: int
) -> None:
    assert with_short_ranking(analysis_of(reference_analysis, shape), CPU).ranking.size >= least


@pytest.mark.parametrize("shape", [(32, 2048), (128, 512), (64, 1024)])
def test_windows_are_cut_for_passages_enough(reference_analysis: Analysis, shape: tuple[int, int]) -> None:
    analysis = analysis_of(reference_analysis, shape)
    short = with_short_ranking(analysis, CPU).ranking
    assert len(short) >= 8
    assert short.shape[1] >= 512  # in a shorter one the use of a long context is not seen
    assert short.size <= ranking_tokens(134_515_008, CPU, analysis.ranking.size)
    assert (short == analysis.ranking[: len(short), : short.shape[1]]).all()  # each begins where its window does
    assert with_short_ranking(analysis, GPU) is analysis
