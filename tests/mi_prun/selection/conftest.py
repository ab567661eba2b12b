"""Analyses of random models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from mi_prun.analysis.analysis import Analysis
from mi_prun.analysis.boundaries import collect, pair_angles, sample_tokens
from mi_prun.analysis.mutual_information import Gaussian, segment_costs
from mi_prun.model.block_model import BlockModel


@pytest.fixture
def analysed(reference_analysis: Analysis) -> Callable[..., Analysis]:
    """`analysed(model, scoring, ranking, held_out, sampled_tokens)`: one pass over `scoring`, Gaussian costs."""
    like = reference_analysis.record

    def make(
        model: BlockModel, scoring: Tensor, ranking: Tensor, held_out: Tensor, *, sampled_tokens: int, seed: int = 0
    ) -> Analysis:
        sample = sample_tokens(scoring, sampled_tokens, seed)
        seen = collect(model, scoring, sample=sample, projection=8, seed=seed)
        mi = Gaussian().segment_mi(seen.projections)
        count = model.num_blocks
        dense = like.dense.model_copy(update={"num_blocks": count, "block_parameters": (1,) * count})
        return Analysis(
            like.model_copy(update={"dense": dense}),
            segment_cost_nats=segment_costs(mi).numpy(),
            segment_mi_nats=mi.numpy(),
            block_cosine=seen.cosine.numpy(),
            pair_angle=pair_angles(seen.projections).numpy(),
            scoring=scoring.int().numpy(),
            ranking=ranking.int().numpy(),
            held_out=held_out.int().numpy(),
        )

    return make
