"""Information that is left where one state is read in another's place, against what it is by its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mi_prun.analysis.boundaries import Boundaries
from mi_prun.analysis.mutual_information import segment_costs
from mi_prun.analysis.readers import Readers
from mi_prun.analysis.reading import Reading
from mi_prun.errors import UserError
from mi_prun.selection.objective import best_sets

pytestmark = pytest.mark.numeric


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cost_of(states: torch.Tensor, noise: float = 1.0) -> torch.Tensor:
    return segment_costs(Reading(noise=noise).segment_mi(states))


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 1.0])
def test_it_is_the_bound_of_a_decoder_that_takes_the_one_for_the_other(rho: float, noise: float) -> None:
    """H(y) + E log q(y | x): Gaussians of unit variance and correlation rho, y = x' + e, q(y | x) = N(y; x, noise)."""
    x, other = drawn(2, 500, 512)
    states = torch.stack([x, rho * x + math.sqrt(1 - rho**2) * other])
    entropy = 0.5 * math.log(2 * math.pi * math.e * (1 + noise))
    log_q = -0.5 * math.log(2 * math.pi * noise) - (noise + 2 * (1 - rho)) / (2 * noise)
    estimate = float(Reading(noise=noise).segment_mi(states)[0, 1])
    assert estimate == pytest.approx(entropy + log_q, abs=0.01 / noise)
    assert estimate <= -0.5 * math.log(1 - rho**2 / (1 + noise)) + 0.01 / noise  # never above the information itself


def test_the_cost_of_what_did_not_change_is_exactly_zero() -> None:
    first, last = drawn(2, 300, 24)
    cost = cost_of(torch.stack([first, first, first, last, last]))
    assert torch.equal(cost[:3, :3], torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(cost[3:, 3:], torch.zeros(2, 2, dtype=torch.float64))
    assert (cost[:3, 3:] > 0.5).all()


def test_lengths_of_states_do_not_count() -> None:
    """Neither a state that grows over the depth, nor a token that is a thousand times longer than the others."""
    states = drawn(4, 200, 24)
    longer = (
        states * torch.tensor([1.0, 3.0, 40.0, 900.0])[:, None, None] * (1 + 999 * (torch.arange(200) == 7))[:, None]
    )
    assert torch.allclose(cost_of(longer), cost_of(states), atol=1e-6)
    assert float(cost_of(torch.stack([states[0], 5 * states[0]]))[0, 1]) == pytest.approx(0, abs=1e-6)


def test_a_rotation_of_all_states_does_not_count_and_that_of_one_does() -> None:
    """What no estimator of plain mutual information can see: a rotation keeps all of it."""
    states = drawn(3, 200, 16)
    rotation = torch.linalg.qr(drawn(16, 16, seed=1))[0]
    assert torch.allclose(cost_of(states @ rotation), cost_of(states), atol=1e-6)
    assert float(cost_of(torch.stack([states[0], states[0] @ rotation]))[0, 1]) > 0.5


def test_the_noise_is_a_unit() -> None:
    states = drawn(4, 100, 16)
    assert torch.allclose(cost_of(states, noise=0.25), 4 * cost_of(states), atol=1e-9)


def test_a_run_of_independent_changes_costs_what_its_blocks_cost_apart() -> None:
    """To first order in the changes: so J compares runs with scattered blocks, and noise alone decides between them."""
    changes = torch.cat([drawn(1, 400, 256), 0.05 * drawn(8, 400, 256, seed=1)])
    cost = cost_of(changes.cumsum(0))
    single = cost.diagonal(1)
    for i, j in ((0, 4), (2, 8), (0, 8)):
        assert float(cost[i, j]) == pytest.approx(float(single[i:j].sum()), rel=0.03)
    # Three blocks that change less are taken wherever they are.
    for idle in ((2, 3, 4), (1, 4, 6)):
        own = changes.clone()
        own[[block + 1 for block in idle]] *= 0.5
        assert best_sets(np.asarray(cost_of(own.cumsum(0))), 3)[0][1] == idle


def test_dimensions_that_no_reader_weighs_do_not_count() -> None:
    states = drawn(3, 200, 16)
    massive = states.clone()
    massive[:, :, 3] += torch.tensor([0.0, 500.0, 9000.0])[:, None]
    readers = Readers.plain(3, 16)
    readers.scale[:, 3] = 1e-8
    found, wanted = (Reading().read(h, readers) for h in (massive, states))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_only_the_readers_behind_a_segment_count() -> None:
    """Readers 0 and 1 see the one dimension, reader 2 the other; only the first dimension changes."""
    before = torch.tensor([[1.0, 1.0]]).expand(50, 2) + 0.01 * drawn(50, 2)
    after = before * torch.tensor([-1.0, 1.0])
    readers = Readers(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.zeros(3, dtype=torch.bool))
    cost = segment_costs(Reading().read(torch.stack([before, after, after]), readers))
    assert float(cost[0, 1]) == pytest.approx(1.0)  # reader 1 loses 2, reader 2 nothing
    assert float(cost[0, 2]) == pytest.approx(0.0)


def test_sinks_count_as_much_as_the_text() -> None:
    """And first tokens that are none do not count: they are a single token that has nothing before it."""
    text, sinks = drawn(3, 90, 16), drawn(3, 4, 16, seed=1)
    readers = Readers.plain(3, 16)
    ordinary = Boundaries(text, 5 * sinks, torch.ones(2), 90, readers)
    assert torch.equal(Reading().of(ordinary), Reading().read(text, readers))
    sinks[1] *= 40  # at one boundary
    boundaries = Boundaries(text, sinks, torch.ones(2), 90, readers)
    both = Reading().of(boundaries)
    of_sinks = Reading().read(sinks, readers, head=False)
    assert torch.allclose(both, Reading().read(text, readers) + of_sinks)
    assert float(segment_costs(of_sinks)[1, 2]) == 0  # only the head is behind it, and nobody reads what that says
    assert float(segment_costs(of_sinks)[0, 1]) == pytest.approx(float(cost_of(sinks[:2])[0, 1]))
    still = Boundaries(text[:1].expand(3, -1, -1), sinks, torch.ones(2), 90, readers)
    assert torch.allclose(segment_costs(Reading().of(still)), segment_costs(of_sinks))


def test_states_that_will_not_do_are_refused() -> None:
    states = drawn(3, 20, 4)
    states[2, 5, 1] = math.nan
    with pytest.raises(UserError, match="boundary state 2 holds NaN or Inf"):
        Reading().segment_mi(states)
