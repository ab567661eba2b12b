"""The difference of two arms: never "significant" by looking often, whoever comes and however the split is changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from serve.ab.verdict.sums import BUCKETS, MIN_REQUESTS, Contrast, Sums

ALPHA = 0.05
RUNS = 60


def experiment(
    rng: np.random.Generator, values: np.ndarray, share: Callable[[int], float], clients: int | None = None
) -> tuple[bool, bool]:
    """Whether equal arms were ever told apart: by the sequence, and by an interval for a single look."""
    arm, control = Sums(), Sums()
    told_apart = naive = False
    draws, buckets = rng.random(len(values)), rng.integers(0, BUCKETS, len(values))
    if clients:
        client = rng.integers(0, clients, len(values))
        draws, buckets = rng.random(clients)[client], rng.integers(0, BUCKETS, clients)[client]
    for place, value in enumerate(values):
        if draws[place] < share(place):
            arm.add(value, 1.0, 1 / share(place), int(buckets[place]))
        else:
            control.add(value, 1.0, 1 / (1 - share(place)), int(buckets[place]))
        if place % 10 == 0:
            contrast = Contrast(arm, control)
            if contrast.ready:
                estimate = abs(contrast.estimate())
                told_apart = told_apart or estimate > contrast.margin(1.0, ALPHA)
                naive = naive or estimate > 1.96 * contrast.variance(1.0) ** 0.5
    return told_apart, naive


@pytest.mark.parametrize(
    ("share", "count"), [(lambda place: 0.5, 1000), (lambda place: 0.1, 4000)], ids=["even", "1 in 10"]
)
def test_equal_arms_are_told_apart_less_often_than_alpha(share: Callable[[int], float], count: int) -> None:
    """Latencies are skewed, a look after every tenth request."""
    rng = np.random.default_rng(4)
    outcomes = [experiment(rng, rng.lognormal(0, 1, count), share) for _ in range(RUNS)]
    assert sum(told_apart for told_apart, _ in outcomes) <= ALPHA * RUNS
    assert sum(naive for _, naive in outcomes) > 2 * ALPHA * RUNS  # what is prevented


def test_a_ramp_while_the_load_doubles_does_not_tell_equal_arms_apart() -> None:
    """The arm's requests come later on average, when everything is slower: plain means would blame the arm."""
    rng = np.random.default_rng(5)
    count = 1600
    slow = np.where(np.arange(count) < count // 2, 1.0, 2.0)

    def share(place: int) -> float:
        return 0.1 if place < count // 2 else 0.5

    outcomes = [experiment(rng, rng.lognormal(0, 0.5, count) * slow, share) for _ in range(RUNS)]
    assert sum(told_apart for told_apart, _ in outcomes) <= ALPHA * RUNS

    arm, control = Sums(), Sums()
    means: dict[bool, list[float]] = {True: [], False: []}
    draws = rng.random(40_000)
    for place, draw in enumerate(draws):
        value = 1.0 if place < 20_000 else 2.0
        weight = 0.1 if place < 20_000 else 0.5
        mine = bool(draw < weight)
        (arm if mine else control).add(value, 1.0, 1 / (weight if mine else 1 - weight), place % BUCKETS)
        means[mine].append(value)
    assert abs(Contrast(arm, control).estimate()) < 0.05
    assert np.mean(means[True]) - np.mean(means[False]) > 0.3


def test_clients_with_many_requests_each_do_not_pass_for_as_many_opinions() -> None:
    rng = np.random.default_rng(6)
    clients, count = 250, 1500
    outcomes = []
    for _ in range(RUNS):
        slowness = rng.lognormal(0, 1, clients)
        generator = np.random.default_rng(rng.integers(2**32))
        client = np.random.default_rng(generator.integers(2**32)).integers(0, clients, count)
        draws, buckets = rng.random(clients), rng.integers(0, BUCKETS, clients)
        arm, control = Sums(), Sums()
        for one in client:
            (arm if draws[one] < 0.5 else control).add(slowness[one], 1.0, 2.0, int(buckets[one]))
        contrast = Contrast(arm, control)
        independent = (arm.variance + control.variance) ** 0.5
        outcomes.append(
            (abs(contrast.estimate()) > contrast.margin(1.0, ALPHA), abs(contrast.estimate()) > 1.96 * independent)
        )
    assert sum(told_apart for told_apart, _ in outcomes) <= ALPHA * RUNS
    assert sum(naive for _, naive in outcomes) > 2 * ALPHA * RUNS


def of_clients(rng: np.random.Generator, sizes: np.ndarray, values: np.ndarray, count: int = 1500) -> Contrast:
    """Equal arms: half of the clients is in each, drawn at random."""
    clients = len(sizes)
    mine, buckets = rng.permutation(clients) < clients / 2, rng.integers(0, BUCKETS, clients)
    arm, control = Sums(), Sums()
    for one in rng.choice(clients, count, p=sizes / sizes.sum()):
        (arm if mine[one] else control).add(values[one] * rng.lognormal(0, 0.1), 1.0, 2.0, int(buckets[one]))
    return Contrast(arm, control)


@pytest.mark.parametrize("zipf", [0, 1], ids=["equal", "zipf"])
@pytest.mark.parametrize("clients", [2, 3, 5, 10])
def test_a_few_clients_tell_nothing_of_the_arms(clients: int, zipf: int) -> None:
    rng = np.random.default_rng(23)
    sizes = np.arange(1, clients + 1.0) ** -zipf
    contrasts = [of_clients(rng, sizes, rng.lognormal(0, 1, clients)) for _ in range(5)]
    assert [contrast.bounds(ALPHA) for contrast in contrasts] == [None] * 5
    assert not any(contrast.ready for contrast in contrasts)


@pytest.mark.parametrize("zipf", [0, 0.7], ids=["equal", "zipf"])
def test_many_clients_of_equal_arms_are_told_apart_less_often_than_alpha(zipf: float) -> None:
    rng = np.random.default_rng(24)
    sizes = np.arange(1, 301.0) ** -zipf
    contrasts = [of_clients(rng, sizes, rng.lognormal(0, 1, 300)) for _ in range(RUNS)]
    assert sum(contrast.ready for contrast in contrasts) > 0.9 * RUNS
    bounds = [contrast.bounds(ALPHA) or (-1.0, 1.0) for contrast in contrasts]
    assert sum(not low < 0 < high for low, high in bounds) <= ALPHA * RUNS


def test_the_number_of_buckets_is_an_effective_one() -> None:
    def effective(*sizes: float) -> float:
        sums = Sums()
        for place, size in enumerate(sizes):
            sums.add(1.0, size, 1.0, place)
        return sums.effective_buckets

    assert [effective(), effective(2.0), effective(*[2.0] * 30)] == [0.0, 1.0, pytest.approx(30)]
    assert effective(1000.0, *[1.0] * 30) == pytest.approx(1.06, abs=0.01)


def test_requests_without_a_key_are_enough_once_there_are_so_many() -> None:
    sums = Sums()
    for place in range(MIN_REQUESTS):
        sums.add(1.0, 1.0, 1.0, 2 * place % BUCKETS)
    assert sums.enough


def filled(rng: np.random.Generator, mean: float, count: int) -> Sums:
    sums = Sums()
    for value in rng.gamma(4, mean / 4, count):
        sums.add(value, 1.0, 2.0, int(rng.integers(BUCKETS)))
    return sums


def test_a_difference_is_found_and_its_size_is_inside() -> None:
    rng = np.random.default_rng(7)
    contrast = Contrast(filled(rng, 88.0, 2000), filled(rng, 100.0, 2000))
    bounds, ratios = contrast.bounds(ALPHA), contrast.ratio_bounds(ALPHA)
    assert bounds is not None
    assert ratios is not None
    assert ratios[1] is not None
    assert bounds[0] < -12 < bounds[1] < 0
    assert ratios[0] < 0.88 < ratios[1] < 1
    # Where the ratio's interval ends, so does the contrast's.
    assert contrast.bounds(ALPHA, ratios[1])[1] == pytest.approx(0, abs=1e-4)  # type: ignore[index]


def test_with_one_split_it_is_the_plain_mean_and_welchs_standard_error() -> None:
    rng = np.random.default_rng(8)
    values = (rng.lognormal(0, 1, 3000), rng.lognormal(0.1, 1, 2000))
    sums = (Sums(), Sums())
    for one, several in zip(sums, values, strict=True):
        for place, value in enumerate(several):
            one.add(value, 1.0, 7.0, place % BUCKETS)
    contrast = Contrast(*sums)
    welch = stats.ttest_ind(*values, equal_var=False)
    assert contrast.estimate() == pytest.approx(values[0].mean() - values[1].mean())
    independent = sums[0].variance + sums[1].variance
    assert independent**0.5 == pytest.approx(abs(contrast.estimate() / welch.statistic))
    assert independent <= contrast.variance(1.0) < 1.5 * independent


def test_a_figure_may_be_a_ratio_of_sums() -> None:
    """Tokens per second: all tokens over all seconds, not the mean of rates."""
    sums = Sums()
    for tokens, seconds in [(10, 1), (300, 10)] * MIN_REQUESTS:
        sums.add(tokens, seconds, 1.0, 0)
    assert sums.ratio == pytest.approx(310 / 11)


def test_no_interval_of_few() -> None:
    rng = np.random.default_rng(9)
    few, many = filled(rng, 1, MIN_REQUESTS - 1), filled(rng, 1, 5 * MIN_REQUESTS)
    assert Contrast(few, many).bounds(ALPHA) is None
    assert Contrast(many, few).ratio_bounds(ALPHA) is None
    assert Contrast(many, few).needed(1.0, ALPHA, 0.84) is None
    assert Contrast(many).bounds(ALPHA, 0.0) is not None


def test_values_that_are_all_alike_have_no_margin() -> None:
    sums = (Sums(), Sums())
    for one in sums:
        for place in range(2 * MIN_REQUESTS):
            one.add(16.0, 1.0, 2.0, place % BUCKETS)
    assert Contrast(*sums).bounds(ALPHA) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-6))


@pytest.mark.parametrize("value", [0.3, 33.3, 3e5])
def test_rounding_is_no_difference(value: float) -> None:
    """All values are alike, but their sums are of other weights: 1 in 100 requests goes to the arm."""
    sums = (Sums(), Sums())
    for one, percent in zip(sums, (1, 99), strict=True):
        for place in range(100 * percent):
            one.add(value, 1.0, 100 / percent, place % BUCKETS)
    contrast = Contrast(*sums)
    bounds, ratios = contrast.bounds(ALPHA), contrast.ratio_bounds(ALPHA)
    assert bounds is not None
    assert bounds[0] < 0 < bounds[1] < 1e-6 * value
    assert ratios is not None
    assert ratios[0] < 1 < (ratios[1] or 0)


def test_so_many_requests_as_are_needed_do_show_the_effect() -> None:
    """With a power of 0.8: in about 4 of 5 runs of the size that is asked for."""
    rng = np.random.default_rng(10)
    pilot = Contrast(filled(rng, 100.0, 300), filled(rng, 100.0, 300))
    times = pilot.needed(10.0, ALPHA, float(stats.norm.ppf(0.8)))
    assert times is not None
    count = int(300 * times)
    assert 300 < count < 3000
    shown = 0
    for _ in range(40):
        bounds = Contrast(filled(rng, 90.0, count), filled(rng, 100.0, count)).bounds(ALPHA)
        assert bounds is not None
        shown += bounds[1] < 0
    assert shown >= 26
    assert pilot.needed(5.0, ALPHA, 0.84) > 3 * times  # type: ignore[operator]


def test_sums_come_back_as_they_were() -> None:
    sums = filled(np.random.default_rng(11), 3.0, 200)
    again = Sums.restored(sums.state())
    assert Contrast(again).bounds(ALPHA, 0.0) == Contrast(sums).bounds(ALPHA, 0.0)
    assert again.state() == sums.state()
    spoilt = {**sums.state(), "bucket_y": sums.state()["bucket_y"][:32]}
    with pytest.raises(ValueError, match="buckets"):
        Sums.restored(spoilt)
