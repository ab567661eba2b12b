from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mi_prun.analysis.analysis import Analysis
from mi_prun.model.block_model import BlockModel
from mi_prun.selection.context import Context
from mi_prun.selection.objective import best_sets
from mi_prun.selection.race import first_windows
from mi_prun.selection.segment_loss import measured_costs, segment_loss

pytestmark = pytest.mark.numeric


def test_the_costs_are_the_measured_losses_of_segments(
    reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel]
) -> None:
    model = load(reference)
    context = Context(reference_analysis, lambda: model)
    cost = measured_costs(context, 2)
    windows = first_windows(context)
    dense, three, pair = context.screening.measure([(), (3,), (4, 5)], windows=windows)
    assert cost[3, 4] == pytest.approx(three.ce_nats - dense.ce_nats)
    assert cost[4, 6] == pytest.approx(pair.ce_nats - dense.ce_nats)
    assert np.isinf(cost[4, 7])  # longer than was asked for
    assert segment_loss(context, 2, 3) == [dropped for _, dropped in best_sets(cost, 2, 3)]
