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


@pytest.mark.parametrize("shape", [(32, 2048), (128, 512), (64, 1024)])
def test_windows_are_cut_for_passages_enough(reference_analysis: Analysis, shape: tuple[int, int]) -> None:
    dense = reference_analysis.record.dense.model_copy(update={"num_parameters": 134_515_008})
    windows = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    analysis = dataclasses.replace(
        reference_analysis, record=reference_analysis.record.model_copy(update={"dense": dense}), ranking=windows
    )
    short = with_short_ranking(analysis, CPU).ranking
    assert len(short) >= 8
    assert short.shape[1] >= 512  # in a shorter one the use of a long context is not seen
    assert short.size <= ranking_tokens(134_515_008, CPU, windows.size)
    assert (short == windows[: len(short), : short.shape[1]]).all()  # each begins where its window does
    assert with_short_ranking(analysis, GPU) is analysis
