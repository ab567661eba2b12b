"""A row of a study made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.records.schema import Machine
from bench.studies.selection_study import StudyRow
from mi_prun.comparison.comparison_row import Row


def made_row(
    method: str = "greedy-loss",
    seed: int = 0,
    perplexity: float = 11.0,
    dropped: tuple[int, ...] = (0,),
    passes: float = 1.0,
    *,
    num_blocks: int = 4,
    **fields: Any,
) -> StudyRow:
    """A choice in a model of four blocks, whose optimum has perplexity 10."""
    choice: dict[str, Any] = {
        "analysis": "a",
        "method": method,
        "rerank": 0,
        "seed": seed,
        "num_blocks": num_blocks,
        "dropped": dropped,
        "candidates": 0,
        "selection_passes": passes,
        "analysis_passes": 0.25,
        "seconds": 0.0,
        "dense_perplexity": 9.0,
        "perplexity": perplexity,
        "kl_nats_per_token": 0.1,
        "objective_nats": 0.0,
        "objective_gap_nats": 0.0,
    }
    values: dict[str, Any] = {
        "model": "four",
        "text": "books",
        "seed": seed,
        "row": Row(**choice),
        "perplexity": perplexity,
        "kl_nats_per_token": 0.1,
        "dense_perplexity": 9.0,
        "optimum_perplexity": 10.0,
        "optimum_dropped": (3,),
        "evaluation_tokens": 1000,
        "calibration_tokens": 4000,
        "window_tokens": 10,
        "machine": Machine(cpu="c", cores=2, memory_bytes=1, gpu=None, system="s"),
        "versions": {"torch": "2", "transformers": "5"},
        "commit": None,
    }
    return StudyRow(**(values | fields))


@pytest.fixture
def row() -> Callable[..., StudyRow]:
    return made_row
