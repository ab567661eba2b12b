"""The Fisher Gram of the logits: what its definition gives, and a KL that it predicts where removals are small."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.quality.evaluator import Evaluator
from mi_prun.selection.logit_gram import logit_gram

pytestmark = pytest.mark.numeric

WINDOWS = torch.randint(0, 97, (3, 16), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model(tiny: Callable[..., Path], load: Callable[[Path], BlockModel]) -> BlockModel:
    return load(tiny("llama"))


@torch.inference_mode()
def logits(model: BlockModel, dropped: tuple[int, ...]) -> torch.Tensor:
    with model.without(dropped) as pruned:
        return pruned(input_ids=WINDOWS, use_cache=False).logits[:, :-1].double().flatten(0, 1)


def test_the_gram_is_the_mean_covariance_of_the_changes_under_the_dense_model(model: BlockModel) -> None:
    gram = logit_gram(Evaluator(model, WINDOWS, batch_tokens=32))
    dense = logits(model, ())
    p = torch.softmax(dense, -1)
    changes = [logits(model, (block,)) - dense for block in range(6)]
    for i, j in combinations(range(6), 2):
        product = (p * changes[i] * changes[j]).sum(-1) - (p * changes[i]).sum(-1) * (p * changes[j]).sum(-1)
        assert gram.gram[i, j] == pytest.approx(float(product.mean()), rel=1e-3, abs=1e-5)
    assert np.allclose(gram.gram, gram.gram.T)
    singles = Evaluator(model, WINDOWS).measure([(block,) for block in range(6)])
    for single, loss in zip(gram.singles, singles, strict=True):
        assert (single.kl_nats, single.ce_nats) == pytest.approx((loss.kl_nats, loss.ce_nats), abs=1e-5)
    assert gram.dense.ce_nats == pytest.approx(Evaluator(model, WINDOWS).measure([()])[0].ce_nats, abs=1e-5)


def test_few_states_at_a_time_give_the_same_gram(model: BlockModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logit_gram(Evaluator(model, WINDOWS))
    batches: list[int] = []
    final_states = Evaluator.final_states

    def counted(self: Evaluator, tokens: torch.Tensor, sets: list[tuple[int, ...]]) -> list[torch.Tensor]:
        batches.append(len(tokens))
        return final_states(self, tokens, sets)

    monkeypatch.setattr(Evaluator, "final_states", counted)
    monkeypatch.setattr("mi_prun.selection.logit_gram.STATE_BYTES", 7 * 16 * 32 * 4)  # of one window
    parts = logit_gram(Evaluator(model, WINDOWS))
    assert batches == [1, 1, 1]
    assert np.allclose(parts.gram, whole.gram, rtol=1e-5, atol=1e-7)


def test_where_blocks_do_little_the_quadratic_is_the_kl_of_any_set(model: BlockModel) -> None:
    with torch.no_grad():
        for block in model.blocks:
            block.self_attn.o_proj.weight.mul_(0.02)
            block.mlp.down_proj.weight.mul_(0.02)
    evaluator = Evaluator(model, WINDOWS)
    gram = logit_gram(evaluator)
    sets = [dropped for k in (2, 3, 5) for dropped in combinations(range(6), k)]
    measured = np.array([loss.kl_nats for loss in evaluator.measure(sets)])
    assert np.allclose(gram.predict(sets, "kl"), measured, rtol=0.15)
    assert 0.5 * np.diag(gram.gram) == pytest.approx(np.array([loss.kl_nats for loss in gram.singles]), rel=0.1)


def test_a_removal_that_breaks_the_model_costs_more_than_guessing(model: BlockModel) -> None:
    """Block 2 mends what block 1 breaks: without it the logits are not finite. Then the model itself."""
    broken_entry = torch.zeros(model.hidden_size)
    broken_entry[0] = torch.nan
    model.blocks[1].register_forward_hook(lambda block, args, state: state + broken_entry)
    model.blocks[2].register_forward_pre_hook(lambda block, args: (args[0].nan_to_num(), *args[1:]))
    gram = logit_gram(Evaluator(model, WINDOWS))
    others = [0, 1, 3, 4, 5]
    for criterion in ("kl", "ce"):
        assert gram.linear(criterion)[2] == pytest.approx(2 * math.log(model.vocab_size))
        assert gram.linear(criterion)[others].max() < gram.linear(criterion)[2]
    assert not gram.gram[2].any()
    assert not gram.gram[:, 2].any()
    assert gram.gram[np.ix_(others, others)].diagonal().min() > 0
    with pytest.raises(UserError, match=r"^the model without blocks \[2, 4\] gives logits"):
        Evaluator(model, WINDOWS).measure([(4,), (2, 4)])
    with torch.no_grad():
        model.blocks[5].mlp.down_proj.weight[0, 0] = torch.nan
    for broken in (logit_gram, lambda evaluator: evaluator.measure([(4,)])):
        with pytest.raises(UserError, match=r"^the model itself gives logits that are not finite"):
            broken(Evaluator(model, WINDOWS))


def test_it_costs_the_single_removals(model: BlockModel) -> None:
    """It counts nothing itself; by a counted run of blocks it makes 6 dense ones and 5 + 4 + ... + 0."""
    runs = []
    run = model.run
    model.run = lambda block, hidden: (runs.append(block), run(block, hidden))[1]  # type: ignore[method-assign]
    evaluator = Evaluator(model, WINDOWS)
    logit_gram(evaluator, windows=2)
    assert len(runs) == 6 + 15
    assert evaluator.block_tokens == 0
