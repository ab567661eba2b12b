"""Ranks, stability and cost out of records made up for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.studies.selection_group import Group, Texts, by_model
from bench.studies.selection_report import page
from bench.studies.selection_study import Confirmed, StudyRow

MadeRow = Callable[..., StudyRow]


@pytest.fixture
def group(row: MadeRow) -> Callable[..., Group]:
    """`group(method=perplexities)`: methods with a perplexity for each seed."""

    def make(**perplexities: list[float]) -> Group:
        return Group([row(name, seed, p) for name, values in perplexities.items() for seed, p in enumerate(values)])

    return make


def ranks(tried: Group) -> dict[str, int]:
    return {label.removesuffix(":0"): tried.rank(label, 1) for label in tried.labels}


def test_a_method_that_is_worse_on_each_seed_is_behind_however_wild_it_is(group: Callable[..., Group]) -> None:
    """Its spread is larger than its distance: that of one seed, the others are no better for it."""
    assert ranks(group(good=[10.0, 10.1, 10.0], wild=[10.5, 200.0, 11.0])) == {"good": 1, "wild": 2}


def test_methods_are_paired_by_seed(group: Callable[..., Group]) -> None:
    """Texts differ by far more than the methods do on each of them."""
    tried = group(good=[10.0, 12.0, 14.0], worse=[10.3, 12.2, 14.0], same=[10.1, 11.9, 14.0])
    assert ranks(tried) == {"good": 1, "worse": 3, "same": 1}


def test_what_differs_within_its_own_spread_is_tied(group: Callable[..., Group]) -> None:
    assert ranks(group(a=[10.0, 10.2, 10.1], b=[10.1, 10.1, 10.2], c=[10.0, 10.2, 10.1])) == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(("error", "first"), [(0.02, False), (0.04, True)])
def test_what_measuring_cannot_tell_apart_is_first_within_error(error: float, first: bool, row: MadeRow) -> None:
    """The perplexity of the set of b is 1.03 times that of a, which is the best one: it has no distance to measure."""
    rows = [row(name, seed, p, (block,)) for seed in (0, 1) for block, (name, p) in enumerate((("a", 10), ("b", 10.3)))]
    machine = rows[0].machine
    confirmed = Confirmed(
        tokens=100,
        window_tokens=10,
        perplexity={"": 9.0, "0": 10.0, "1": 10.3, "3": 10.0},
        error_nats={"0": 0.0, "1": error},
        machine=machine,
        versions={},
        commit=None,
    )
    tried = Group(rows, confirmed)
    assert [tried.rank(label, 1) for label in tried.labels] == [1, 2]
    assert [tried.first(label, 1) for label in tried.labels] == [True, first]


def test_only_seeds_that_both_have_are_compared(row: MadeRow) -> None:
    tried = Group([row("a", 0, 10.0), row("a", 1, 30.0), row("b", 0, 11.0), row("c", 2, 50.0)])
    assert ranks(tried) == {"a": 1, "b": 2, "c": 1}  # nobody else has the seed of c


def test_a_method_is_compared_where_it_was_tried_on_every_seed(row: MadeRow) -> None:
    """c was not tried at k = 2, and its run was stopped before the second seed of k = 3."""
    methods = {"greedy-loss": 10.0, "b": 11.0}
    rows = [row(name, seed, p, (*range(k),)) for k in (1, 2, 3) for name, p in methods.items() for seed in (0, 1)]
    rows += [row("c", seed, 9.0) for seed in (0, 1)] + [row("c", 0, 9.0, (0, 1, 2))]
    result = Group(rows)
    assert result.ks == [1, 2, 3]
    assert result.ks_of("c:0") == [1]
    assert [result.rank("greedy-loss:0", k) for k in result.ks] == [2, 1, 1]
    lines = page([result]).splitlines()
    assert "| c:0 | 1.000 ± 0.000 (1) | - | - | 1.00 |" in lines
    (together,) = [line for line in lines if line.startswith("| greedy-loss:0 | 3 | 67% |")]
    # Cases, first, first within error (none was measured), mean rank, near.
    assert together.startswith("| greedy-loss:0 | 3 | 67% | 67% | 1.3 | 67% | ")


def test_the_stability_over_seeds_and_over_texts_and_the_cost(row: MadeRow) -> None:
    """Sets of two blocks: over seeds {0, 1} and {1, 2} share one of three; over texts seed 0 the same, seed 1 none."""
    books = Group([row("a", 0, 11.0, (0, 1), 1.0), row("a", 1, 12.0, (1, 2), 2.0)])
    wiki = Group([row("a", 0, 14.0, (0, 1), 3.0, text="wiki"), row("a", 1, 15.0, (0, 3), 4.0, text="wiki")])
    assert books.jaccard("a:0") == pytest.approx(1 / 3)
    assert wiki.jaccard("a:0") == pytest.approx(1 / 3)
    (texts,) = by_model([books, wiki])
    assert isinstance(texts, Texts)
    assert texts.jaccard("a:0") == pytest.approx((1 + 0) / 2)
    assert texts.spread("a:0") == pytest.approx((1.45 - 1.15) / 2**0.5)
    assert texts.passes("a:0", 2) == pytest.approx(2.5 + 0.25)
