"""Estimators against analytic values. Tolerances are stated at each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma

from mi_prun.analysis.estimators import make_estimator
from mi_prun.analysis.mutual_information import KSG, Gaussian, Renyi, check_tokens, data_processing, segment_costs
from mi_prun.errors import UserError

pytestmark = pytest.mark.numeric

NO_NOISE = 1e-9
NAMES = ("gaussian", "ksg", "renyi")


def correlated(rho: float, dims: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """(2, tokens, dims): x and y with correlation rho in each dimension; MI = -dims/2 log(1 - rho^2)."""
    generator = torch.Generator().manual_seed(seed)
    x, e = torch.randn(2, tokens, dims, generator=generator)
    return torch.stack([x, rho * x + math.sqrt(1 - rho**2) * e])


def analytic(rho: float, dims: int) -> float:
    return -dims / 2 * math.log(1 - rho**2)


@pytest.mark.parametrize("dims", [1, 4, 16])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_gaussian_gives_the_analytic_value(rho: float, dims: int) -> None:
    tokens = 20_000
    estimate = float(Gaussian(noise=NO_NOISE).segment_mi(correlated(rho, dims, tokens))[0, 1])
    bias = dims**2 / (2 * tokens)
    assert estimate == pytest.approx(analytic(rho, dims) + bias, abs=0.03 + 0.01 * analytic(rho, dims))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ksg_gives_the_analytic_value(rho: float, dims: int) -> None:
    estimate = float(KSG(noise=NO_NOISE).segment_mi(correlated(rho, dims, 1_500))[0, 1])
    assert estimate == pytest.approx(analytic(rho, dims), abs=0.08 + 0.12 * analytic(rho, dims))


@pytest.mark.parametrize(("dims", "least"), [(8, 1 / 3), (16, 1 / 6)])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ksg_falls_short_in_many_dimensions_and_never_says_more(rho: float, dims: int, least: float) -> None:
    """Known of it (Gao, Ver Steeg, Galstyan 2015): 1,500 tokens do not fill the space. It keeps at least a share."""
    estimate = float(KSG(noise=NO_NOISE).segment_mi(correlated(rho, dims, 1_500))[0, 1])
    assert least * analytic(rho, dims) - 0.1 < estimate < analytic(rho, dims) + 0.1


def kraskov(x: torch.Tensor, y: torch.Tensor, neighbours: int) -> float:
    """Equation 8 of Kraskov, Stoegbauer, Grassberger 2004 by k-d trees: another way than by distance matrices."""
    x, y = ((state - state.mean(0)) / state.std(0) for state in (x, y))
    radius = cKDTree(torch.cat([x, y], 1)).query(torch.cat([x, y], 1), neighbours + 1, p=math.inf)[0][:, -1]
    counts = [
        cKDTree(state).query_ball_point(state, np.nextafter(radius, 0), p=math.inf, return_length=True)
        for state in (x, y)  # the point itself among them: the + 1
    ]
    return float(digamma(neighbours) + digamma(len(x)) - sum(digamma(count).mean() for count in counts))


@pytest.mark.parametrize("dims", [2, 8, 16])
def test_ksg_is_the_published_estimate_in_as_many_dimensions_as_by_default(dims: int) -> None:
    """In all of them it also grows with the correlation, though it falls short."""
    estimates = []
    for rho in (0.0, 0.5, 0.9):
        states = correlated(rho, dims, 800)
        estimates.append(float(KSG(noise=NO_NOISE).segment_mi(states)[0, 1]))
        assert estimates[-1] == pytest.approx(kraskov(*states.double(), neighbours=3), abs=2e-3)
    assert estimates == sorted(estimates)
    assert estimates[2] > estimates[1] + 0.1 > estimates[0] + 0.2


@pytest.mark.parametrize("dims", [1, *(pytest.param(dims, marks=pytest.mark.long) for dims in (2, 4)), 8])
@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8, 0.95])
def test_renyi_gives_the_analytic_value(rho: float, dims: int) -> None:
    """It is `-dims/2 log(1 - rho^2 a b / ((1 + a)(1 + b)))` (a = 4 / w^2, w the kernel width)."""
    states = correlated(rho, dims, 1_500)
    a, b = (4 / float(torch.pdist(x).square().median()) for x in states)
    expected = -dims / 2 * math.log(1 - rho**2 * a * b / ((1 + a) * (1 + b)))
    estimate = float(Renyi(noise=NO_NOISE).segment_mi(states)[0, 1])
    assert estimate == pytest.approx(expected, abs=0.01 + 0.05 * expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_estimator_sees_a_shift_or_the_scale_of_a_state(name: str) -> None:
    states = correlated(0.7, 4, 1_200)
    estimator = make_estimator(name, 1e-6)
    moved = torch.stack([3.0 + 0.1 * states[0], 50.0 * states[1] - 7.0])
    assert float(estimator.segment_mi(moved)[0, 1]) == pytest.approx(
        float(estimator.segment_mi(states)[0, 1]), abs=5e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_far_from_zero_is_not_lost_in_rounding(name: str) -> None:
    """Some models give every token the same large activation: thousands of times what tells tokens apart."""
    states = correlated(0.7, 4, 1_200)
    far = (states.double() + 3_000.0).float()
    estimator = make_estimator(name, 1e-6)
    centred = (far.double() - 3_000.0).float()  # what float32 keeps of the states there
    assert float(estimator.segment_mi(far)[0, 1]) == pytest.approx(float(estimator.segment_mi(centred)[0, 1]), abs=5e-3)


@pytest.mark.parametrize("name", ["gaussian", "renyi"])
def test_the_rotation_of_a_state_does_not_count(name: str) -> None:
    """Not so for ksg: it looks along the axes."""
    states = correlated(0.7, 4, 1_200)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    estimator = make_estimator(name, 1e-6)
    turned = torch.stack([states[0] @ rotation, states[1]])
    assert float(estimator.segment_mi(turned)[0, 1]) == pytest.approx(
        float(estimator.segment_mi(states)[0, 1]), abs=5e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_the_second_tells_of_the_first_the_first_tells_of_the_second(name: str) -> None:
    states = correlated(0.6, 3, 1_200)
    estimator = make_estimator(name, 1e-6)
    forward, backward = (float(estimator.segment_mi(s)[0, 1]) for s in (states, states.flip(0)))
    assert forward == pytest.approx(backward, abs=5e-3)


def test_renyi_entropy_of_a_gaussian_is_the_analytic_one() -> None:
    """tr(A^2) -> E[k(x, x')^2]: for unit Gaussians and width w, x - x' ~ N(0, 2), so it is (1 + 4 / w^2)^(-d/2)."""
    dims, tokens = 2, 1_500
    x = correlated(0.0, dims, tokens)[0]
    median_squared = float(torch.pdist(x).square().median())
    expected = dims / 2 * math.log(1 + 4 / median_squared)
    renyi = Renyi()
    assert float(renyi.entropy(renyi._gram(x))) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_independence_is_about_zero_and_mi_grows_with_correlation(name: str) -> None:
    estimator = make_estimator(name, 1e-3)
    values = [float(estimator.segment_mi(correlated(rho, 2, 1_200))[0, 1]) for rho in (0.0, 0.4, 0.7, 0.95)]
    assert abs(values[0]) < 0.05
    assert values == sorted(values)


def test_gaussian_does_not_change_under_an_invertible_linear_map_of_its_input() -> None:
    states = correlated(0.7, 4, 5_000)
    mixed = torch.stack([states[0] @ torch.randn(4, 4, generator=torch.Generator().manual_seed(1)), states[1]])
    estimator = Gaussian(noise=NO_NOISE)
    assert float(estimator.segment_mi(mixed)[0, 1]) == pytest.approx(
        float(estimator.segment_mi(states)[0, 1]), abs=1e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_zero_of_the_cost_is_a_state_that_did_not_change(name: str) -> None:
    """Exactly 0: with a covariance of its own, each copy differs by what the processor's order of sums makes of it."""
    first, last = correlated(0.5, 3, 1_000)
    estimator = make_estimator(name)
    cost = segment_costs(estimator.segment_mi(torch.stack([first, first, first, last, last])))
    assert torch.equal(cost[:3, :3], torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(cost[3:, 3:], torch.zeros(2, 2, dtype=torch.float64))
    # And copies stand for their original in every segment that does change something.
    mi = estimator.segment_mi(torch.stack([first, last]))
    assert torch.equal(cost[:3, 3:], segment_costs(mi)[0, 1].expand(3, 2))


def test_self_information_through_noise_is_the_channel_capacity() -> None:
    """I(x; x + e) of unit Gaussians is d/2 log(1 + 1/noise)."""
    states = correlated(0.0, 4, 50_000)[:1]
    value = float(Gaussian(noise=0.1).segment_mi(states)[0, 0])
    assert value == pytest.approx(2 * math.log(1 + 1 / 0.1), rel=0.01)


def test_a_chain_keeps_the_data_processing_inequality_and_a_shortcut_is_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    chain = [torch.randn(4_000, 2, generator=generator)]
    for _ in range(4):
        chain.append(chain[-1] + torch.randn(4_000, 2, generator=generator))
    mi = Gaussian().segment_mi(torch.stack(chain))
    checked = data_processing(mi, tolerance_nats=0.01)
    assert (checked.violations, checked.triples, checked.worst_nats) == (0, 10, 0.0)
    shortcut = mi.clone()
    shortcut[0, 3] = shortcut[2, 3] + 0.5
    checked = data_processing(shortcut, tolerance_nats=0.01)
    assert checked.violations == 2  # state 0 tells more of state 3 than the states 1 and 2 between them do
    assert checked.triples == 10
    assert checked.worst_nats == pytest.approx(float(shortcut[0, 3] - mi[1, 3]))
    assert data_processing(shortcut, tolerance_nats=0.7).violations == int(float(shortcut[0, 3] - mi[1, 3]) > 0.7)


def test_each_later_state_has_a_noise_of_its_own_which_is_no_violation() -> None:
    """Along a row estimates may grow: a state that is told apart better, its noise being relative, is no shortcut."""
    growing = torch.tensor([[5.0, 1.0, 2.0, 3.0], [0, 5, 2, 3], [0, 0, 5, 3], [0, 0, 0, 5]], dtype=torch.float64)
    assert data_processing(growing).violations == 0
    growing[1, 3] = 3.5  # more than [2, 3]
    assert data_processing(growing).violations == 1
    assert data_processing(growing).worst_nats == pytest.approx(0.5)
    assert data_processing(growing[:2, :2]).triples == 0


def test_states_that_are_not_finite_name_the_block() -> None:
    states = torch.randn(3, 400, 2)
    states[2, 5, 1] = math.nan
    with pytest.raises(UserError, match="boundary state 2 holds NaN or Inf \\(the output of block 1\\)"):
        Gaussian().segment_mi(states)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -3e4])
@pytest.mark.parametrize("name", NAMES)
def test_constant_states_are_refused(name: str, value: float) -> None:
    """The mean of many equal numbers is not that number to the last bit."""
    states = torch.randn(3, 399, 2)
    states[1] = value
    states[1, :, 1] *= 1 + 2e-7 * torch.randn(399).clamp(-2, 2)  # the rounding of float32
    with pytest.raises(UserError, match="boundary state 1 is the same for every token"):
        make_estimator(name).segment_mi(states)


def test_a_small_spread_on_a_large_mean_is_a_state() -> None:
    states = correlated(0.9, 2, 400)
    assert float(Gaussian().segment_mi(states + 1e3)[0, 1]) == pytest.approx(
        float(Gaussian().segment_mi(states)[0, 1]), abs=1e-2
    )


@pytest.mark.parametrize(("name", "dims", "needed"), [("gaussian", 32, 64), ("ksg", 32, 32), ("renyi", 32, 32)])
def test_too_few_tokens_say_how_many_are_needed(name: str, dims: int, needed: int) -> None:
    estimator = make_estimator(name)
    assert estimator.least_tokens(dims) == needed
    with pytest.raises(
        UserError, match=rf"{name} MI of {dims} dimensions needs at least {needed} tokens, got 20; give "
    ):
        estimator.segment_mi(torch.randn(2, 20, dims))
    assert torch.isfinite(estimator.segment_mi(torch.randn(2, needed, dims))).all()


def test_ksg_needs_more_tokens_than_neighbours_and_renyi_a_pair() -> None:
    assert KSG(neighbours=5).least_tokens(1) == 7
    assert Renyi().least_tokens(1) == 2
    with pytest.raises(UserError, match="needs at least 7 tokens, got 6"):
        KSG(neighbours=5).segment_mi(torch.randn(2, 6, 1))


def test_more_text_is_not_asked_for_where_it_would_not_be_looked_at() -> None:
    with pytest.raises(UserError, match="needs at least 2000 tokens, got 1500; give a smaller projection"):
        check_tokens(1_500, 2_000, KSG())


def test_states_of_less_than_full_rank_have_the_mutual_information_of_the_space_they_lie_in() -> None:
    """Repetitive text: 3 dimensions inside 16. The noise is told per dimension, hence the factor."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4_000, 3, generator=generator)
    low = torch.stack([x, x + 0.5 * torch.randn(4_000, 3, generator=generator)])
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:3]
    wanted = Gaussian(noise=0.03).segment_mi(low)
    mi = Gaussian(noise=0.03 * 16 / 3).segment_mi(low @ directions)
    assert torch.allclose(mi, wanted, atol=1e-3)
    assert float(wanted[0, 1]) > 1
