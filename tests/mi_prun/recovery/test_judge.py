from __future__ import annotations

import math

import pytest
import torch

from mi_prun.checkpoint.healing import HealedQuality
from mi_prun.errors import UserError
from mi_prun.quality.evaluator import Evaluator
from mi_prun.recovery.judge import Judge, Judged, compared, judged
from mi_prun.text.calibration import Windows


def test_what_is_not_a_number_is_one_line():
    kind = Windows(torch.zeros(1, 3, dtype=torch.long), "some text")
    good = torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64)
    assert judged(kind, [good]).ce_nats == 1.0
    for place, said in (
        (0, "the dense model gives NaN or Inf on some text"),
        (1, "the model gives NaN or Inf on some"),
    ):
        sums = good.clone()
        sums[place] = float("nan")
        with pytest.raises(UserError, match=said):
            judged(kind, [good, sums])


def test_perplexity_past_counting_is_the_largest_number():
    broken = Judged("x", 1, 1.0, 5_000.0, 4_000.0, 2)
    assert compared([broken], [broken])[0].pruned_perplexity > 1e300


def test_it_measures_what_the_evaluator_measures(shared, tokens):
    weights = shared((2, 3))
    (judged,) = Judge(weights, [Windows(tokens, "some")], batch_windows=4).measure()
    dense, pruned = Evaluator(weights.model, tokens).measure([(), (2, 3)])
    assert (judged.text, judged.predicted_tokens) == ("some", 90)
    assert judged.dense_ce_nats == pytest.approx(dense.ce_nats, rel=1e-5)
    assert judged.ce_nats == pytest.approx(pruned.ce_nats, rel=1e-5)
    assert judged.kl_nats == pytest.approx(pruned.kl_nats, rel=1e-4)


def test_what_the_student_learned_shows_and_the_dense_model_stays(shared, tokens):
    weights = shared((2,))
    judge = Judge(weights, [Windows(tokens, "some"), Windows(tokens[:2], "other")], batch_windows=2)
    before = judge.measure()
    name = weights.names((1,))[0]
    with torch.no_grad():
        weights.give(name, weights.shared(name) + 0.5)
    after = judge.measure()
    assert [kind.dense_ce_nats for kind in after] == [kind.dense_ce_nats for kind in before]
    assert after[0].ce_nats != before[0].ce_nats
    quality = compared(before, after)
    assert [kind.text for kind in quality] == ["some", "other"]
    assert quality[1].healed_perplexity == pytest.approx(math.exp(after[1].ce_nats))


@pytest.mark.parametrize(
    ("dense", "pruned", "healed", "kl", "better"),
    [
        (10, 30, 20, 0.1, True),
        (10, 30, 31, 0.1, False),
        (10, 30, 20, 0.6, False),  # a lower perplexity by going away from the dense model
        (30, 25, 28, 0.1, True),  # pruning had lowered it: the dense model is bad at this text
        (30, 25, 28, 0.5, False),
    ],
)
def test_what_is_better(dense, pruned, healed, kl, better):
    quality = HealedQuality(
        text="", predicted_tokens=1, dense_perplexity=dense, pruned_perplexity=pruned, healed_perplexity=healed,
        pruned_kl_nats=0.5, healed_kl_nats=kl,
    )  # fmt: skip
    assert quality.better is better


def test_share_of_the_gap():
    quality = HealedQuality(
        text="", predicted_tokens=1, dense_perplexity=10, pruned_perplexity=40, healed_perplexity=20,
        pruned_kl_nats=1, healed_kl_nats=0.5,
    )  # fmt: skip
    assert quality.gap_closed == pytest.approx(0.5)
