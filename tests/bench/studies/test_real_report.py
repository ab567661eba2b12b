"""The page on real models says of each method what its records say, beside the better of the two baselines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.studies.real_report import (
    DEFAULT,
    PERPLEXITY,
    Text,
    page,
    picture,
    read_all_last_words,
    read_elsewhere,
    read_pairs,
    read_texts,
)
from bench.studies.selection_study import Pair, StudyRow
from bench.studies.set_losses import LastWords, SetLoss
from mi_prun.errors import UserError
from mi_prun.files import append_line

PERPLEXITIES = {"bi": (30.0, 50.0), "angular": (36.0, 42.0), "mi-prun": (33.0, 39.0)}


@pytest.fixture
def rows(row: Callable[..., StudyRow]) -> list[StudyRow]:
    def made(method: str, seed: int, k: int, perplexity: float, estimator: str = "reading") -> StudyRow:
        first = [*PERPLEXITIES].index(method) + (estimator == "ksg")  # each has sets of its own
        return row(
            method, seed, perplexity, (*range(first, first + k),), num_blocks=9, model="real", text="wiki",
            estimator=estimator, dense_perplexity=20, window_tokens=100,
        )  # fmt: skip

    choices = [
        made(method, seed, k, k * perplexities[seed])
        for method, perplexities in PERPLEXITIES.items()
        for seed in (0, 1)
        for k in (1, 2)
    ]
    return [*choices, made("mi-prun", 0, 1, 90.0, estimator="ksg")]


@pytest.fixture
def with_default(rows: list[StudyRow]) -> list[StudyRow]:
    """The default is first at k = 1, behind at k = 2, on both seeds."""
    picked = [one for one in rows if one.row.method == "bi"]
    return rows + [
        one.model_copy(
            update={
                "row": one.row.model_copy(
                    update={"method": "hybrid", "rerank": None, "dropped": (*range(4, 4 + len(one.row.dropped)),)}
                ),
                "perplexity": 30.0 + one.seed if len(one.row.dropped) == 1 else 90.0 + 2 * one.seed,
            }
        )
        for one in picked
    ]


def losses_of(rows: list[StudyRow], text: str) -> list[SetLoss]:
    """The dense model and each set, on another text: 100, and 10 more for each block dropped."""
    return [
        SetLoss(
            model="real", text=text, text_sha256="", tokens=500, window_tokens=50, dtype="float32", dropped=dropped,
            ce_nats=math.log(100 + 10 * len(dropped)),
        )
        for dropped in sorted({(), *(one.row.dropped for one in rows)})
    ]  # fmt: skip


def test_the_default_is_held_against_the_best_other_on_its_seeds(with_default: list[StudyRow]) -> None:
    text = Text(with_default)
    ratio, error = text.beside_others(DEFAULT, 1, PERPLEXITY)
    assert ratio == pytest.approx(30.5 / 36)  # mi-prun's 33 and 39
    assert error == pytest.approx(statistics.stdev([30 - 33, 31 - 39]) / math.sqrt(2) / 36)
    assert text.beside_others(DEFAULT, 2, PERPLEXITY)[0] == pytest.approx(91 / 72)
    said = page([text])
    assert f"| real | wiki | wiki | perplexity | hybrid | 2 | {30.5 / 36:.3f} +- {error:.3f} | **1.264 +- " in said
    assert "| real | wiki | wiki | KL | hybrid | 2 | 1.000 +- 0.000 | 1.000 +- 0.000 |" in said
    assert (
        Text([one for one in with_default if one.row.method != "hybrid"]).beside_others(DEFAULT, 1, PERPLEXITY) is None
    )
    variant = [one.model_copy(update={"left_out": "mi", "perplexity": 1.0}) for one in with_default]
    only = Text([*with_default, *(one for one in variant if one.row.method == "hybrid")])
    assert only.beside_others(DEFAULT, 1, PERPLEXITY) == (ratio, error)
    assert "| `hybrid without mi` | 2 | 1; " in page([only])
    variant = [
        one.model_copy(update={"left_out": None, "criterion": "kl", "recall": 0.0})
        for one in variant
        if one.row.method == "hybrid"
    ]
    said = page([Text([*with_default, *variant])])
    assert f"| real | wiki | wiki | perplexity | hybrid | 2 | {30.5 / 36:.3f} +- {error:.3f} |" in said
    assert f"| real | wiki | wiki | perplexity | hybrid --criterion kl --recall 0 | 2 | {1 / 36:.3f} +- " in said


def test_the_default_has_its_row_where_it_lacks_the_smallest_k(with_default: list[StudyRow]) -> None:
    def without(*left_out: tuple[int, int]) -> str:
        """left_out: seed and k."""
        return page(
            [
                Text(
                    [
                        one
                        for one in with_default
                        if one.row.method != "hybrid" or (one.seed, len(one.row.dropped)) not in left_out
                    ]
                )
            ]
        )

    assert "| real | wiki | wiki | perplexity | hybrid | 2 | - | **1.264 +- " in without((0, 1), (1, 1))
    assert "| real | wiki | wiki | perplexity | hybrid | 1-2 | " in without((0, 1))
    assert "| hybrid | " not in without((0, 1), (1, 1), (0, 2), (1, 2))


def test_a_set_is_as_good_as_itself_whatever_another_machine_measured(with_default: list[StudyRow]) -> None:
    same = [
        one.model_copy(
            update={"row": one.row.model_copy(update={"method": "hybrid", "rerank": None}), "perplexity": 33.1}
        )
        for one in with_default
        if one.row.label == "mi-prun:0" and one.estimator == "reading" and one.seed == 0 and len(one.row.dropped) == 1
    ]
    text = Text([one for one in with_default if one.row.method != "hybrid" and one.seed == 0] + same)
    assert text.beside_others(DEFAULT, 1, PERPLEXITY)[0] == pytest.approx(33.1 / 30)  # bi has the lowest
    text = Text([one for one in with_default if one.row.method == "mi-prun" and one.seed == 0] + same)
    assert text.beside_others(DEFAULT, 1, PERPLEXITY)[0] == 1.0


def test_sets_are_judged_on_other_texts_too(with_default: list[StudyRow], tmp_path: Path) -> None:
    text = Text(with_default)
    for name in ("books", "chats"):
        for loss in losses_of(with_default, f"{name}.txt"):
            append_line(tmp_path / f"real.wiki-on-{name}.losses.jsonl", loss.model_dump_json())
    elsewhere = read_elsewhere(tmp_path, [text])
    said = page([text], elsewhere=elsewhere)
    for name in ("books.txt", "chats.txt"):
        assert f"The same sets on {name}, 500 tokens in windows of 50 (dense 100.00):" in said
    assert "| `bi:0` | 2 | 110; 1.00 (1.00) | 120; 1.00 (1.00) |" in said
    assert "| real | wiki | books.txt | perplexity | hybrid | 2 | 1.000 +- 0.000 | 1.000 +- 0.000 |" in said
    with pytest.raises(UserError, match=r"real on books.txt: 1 sets that were chosen on wiki are not measured"):
        text.elsewhere(losses_of(with_default, "books.txt")[:-1])
    elsewhere_measured = losses_of(with_default, "books.txt")
    tail = with_default[0].model_copy(
        update={"row": with_default[0].row.model_copy(update={"method": "tail", "dropped": (28, 29)})}
    )
    more = Text([*with_default, tail])
    there = more.elsewhere(elsewhere_measured)
    assert "tail:0" not in there.labels
    assert "(dense 100.00); `tail:0` not measured there:" in page([more], elsewhere={more: [there]})
    path = tmp_path / "real.wiki-on-books.losses.jsonl"
    for loss, there in ((losses_of(with_default, "books.txt")[0], "rows of --recall"), (None, "no rows")):
        path.write_text("" if loss is None else loss.model_copy(update={"recall": True}).model_dump_json() + "\n")
        with pytest.raises(UserError, match=f"{path.name} has {there}; make it again with"):
            read_elsewhere(tmp_path, [text])


def test_the_bar_is_the_lower_mean_and_the_worst_seed_is_against_that_seeds_better_one(rows: list[StudyRow]) -> None:
    text = Text(rows)
    assert text.bar(1, (0, 1)) == 39.0  # angular's mean; bi's is 40
    assert text.bar(1, (0,)) == 30.0
    assert text.ratios("mi-prun:0 reading", 1) == (36.0 / 39.0, 33.0 / 30.0)
    assert text.ratios("mi-prun:0 ksg", 1) == (90.0 / 30.0, 90.0 / 30.0)  # it has the first seed alone
    assert text.labels == ["bi:0", "angular:0", "mi-prun:0 reading", "mi-prun:0 ksg"]


def test_the_published_way_is_held_against_the_bar(rows: list[StudyRow]) -> None:
    assert "## Scores that measure nothing" not in page([Text(rows)])
    best = [
        one.model_copy(
            update={
                "row": one.row.model_copy(update={"method": "mi-optimum"}),
                "perplexity": one.perplexity * (1.0 if len(one.row.dropped) == 1 else 1.1),
            }
        )
        for one in rows
        if one.row.method == "mi-prun" and one.estimator == "reading"
    ]
    said = page([Text([*rows, *best])])
    assert "| real | wiki | 2 | 0.923 (1.10) | 0.923 (1.10) |" in said
    assert "| real | wiki | 2 | 1.000 | **1.100** |" in said
    worse = [one.model_copy(update={"perplexity": 1.2 * one.perplexity}) for one in rows if one.row.method == "mi-prun"]
    said = page([Text([*(one for one in rows if one.row.method != "mi-prun"), *worse, *best])])
    assert "| real | wiki | 2 | **1.108 (1.32)** | **1.108 (1.32)** |" in said


def test_the_page_has_every_cell_and_says_where_there_is_none(rows: list[StudyRow]) -> None:
    said = page([Text(rows)])
    assert "| `mi-prun:0 reading` | 2 | 36; 0.92 (1.10) | 72; 0.92 (1.10) |" in said
    assert "| `mi-prun:0 ksg` | 1 | 90; 3.00 (3.00) | - |" in said
    assert "Dense perplexity 20.00 on 1,000 tokens, windows of 100; 2 seeds." in said
    assert "| `bi:0` | 0 | 0 1 |" in said


@pytest.mark.parametrize(
    ("difference", "said"), [(0.03, "**behind**"), (0.01, "tied"), (-0.03, "ahead")], ids=["behind", "tied", "ahead"]
)
def test_where_one_seed_is_behind_both_sets_are_compared_on_more_text(
    with_default: list[StudyRow], difference: float, said: str, tmp_path: Path
) -> None:
    one_seed = [one for one in with_default if one.seed == 0]
    text = Text(one_seed)
    assert text.behind(1) is None  # first
    assert text.behind(2) == ((4, 5), (0, 1))  # 90 where bi has 60
    assert Text(with_default).behind(2) is None  # its seeds have a standard error
    pair = Pair(
        model="real", text="wiki", dropped=((4, 5), (0, 1)), tokens=8_000, window_tokens=100, perplexity=(80.0, 70.0),
        difference_nats=difference, standard_error_nats=0.02, machine=one_seed[0].machine, versions={}, commit=None,
    )  # fmt: skip
    append_line(tmp_path / "real.pairs.jsonl", pair.model_dump_json())
    of_another_text = pair.model_copy(update={"text": "books"})
    assert "| 4 5 | 0 1 | - | - | - | not measured |" in page([text], pairs=[of_another_text])
    shown = page([text], pairs=read_pairs(tmp_path))
    assert f"| real | wiki | wiki | 2 | 4 5 | 0 1 | 80 | 70 | {difference:+.4f} +- 0.0200 | {said} |" in shown
    assert "on other parts of the text (8,000 tokens)" in shown
    assert "Where one seed" not in page([Text(with_default)])


def test_what_sets_foretell_stands_beside_where_it_was_counted(rows: list[StudyRow], tmp_path: Path) -> None:
    assert "Last words" not in page([Text(rows)])
    path = tmp_path / "real.lambada.last-words.jsonl"
    for dropped, foretold in (((), 30), ((0,), 20)):
        count = LastWords(
            model="real", text="lambada.jsonl", items_sha256="", items=40, dtype="float32", dropped=dropped,
            foretold=foretold,
        )  # fmt: skip
        append_line(path, count.model_dump_json())
    said = page([Text(rows)], read_all_last_words(tmp_path))
    assert "Last words guessed, of 40 of lambada.jsonl, by the sets of the first seed (dense 75.0%):" in said
    assert "| `bi:0` | 50.0% | - |" in said


def test_the_picture_has_a_line_for_each_method(rows: list[StudyRow]) -> None:
    drawn = picture([Text(rows)])
    assert drawn == picture([Text(rows)])
    for label in ("bi:0", "mi-prun:0 ksg", "real, wiki"):
        assert label in drawn


def test_the_picture_compares_methods_on_the_same_seeds(rows: list[StudyRow]) -> None:
    """A mean over one seed beside a mean over three would be another text."""
    first = min(one.seed for one in rows)
    label = next(one for one in rows if one.row.method == "mi-prun").label
    some = [one for one in rows if one.label != label or one.seed == first]
    assert len(some) < len(rows)
    assert picture([Text(some)]) == picture([Text([one for one in rows if one.seed == first])])
    assert Text(rows).shared_seeds([]) == set()


def test_the_picture_leaves_out_the_default_with_other_settings(with_default: list[StudyRow]) -> None:
    hybrid = [one for one in with_default if one.row.method == "hybrid"]
    other = [one.model_copy(update={"recall": 0.0}) for one in hybrid]
    assert picture([Text([*with_default, *other])]) == picture([Text(with_default)])


def test_a_method_of_one_text_alone_is_in_the_legend_too(rows: list[StudyRow]) -> None:
    """The first panel does not have it."""
    few = [one for one in rows if one.estimator != "ksg" and one.row.method != "mi-prun"]
    assert "mi-prun:0 ksg" in picture([Text(few), Text(rows)])


def test_records_without_a_baseline_are_refused(rows: list[StudyRow], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no records"):
        read_texts(tmp_path)
    path = tmp_path / "real.wiki.jsonl"
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in rows))
    assert len(read_texts(tmp_path)) == 1
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in rows[1:]))
    with pytest.raises(UserError, match=r"real on wiki lacks rows of bi:0"):
        read_texts(tmp_path)
