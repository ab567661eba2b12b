"""Loss of many block sets at once: the same as removing the blocks, at the cost of the distinct prefixes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model
from mi_prun.quality.evaluator import Evaluator

pytestmark = pytest.mark.numeric

WINDOWS = torch.randint(0, 97, (3, 16), generator=torch.Generator().manual_seed(5))


def load(path: Path) -> BlockModel:
    return load_block_model(open_model(path), device=torch.device("cpu"), dtype=torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_kl_and_cross_entropy_are_those_of_the_model_without_the_blocks(
    tiny: Callable[..., Path], model_type: str
) -> None:
    model = load(tiny(model_type))
    sets = [(), (0,), (1, 4), (1, 2, 3), (5,)]
    losses = Evaluator(model, WINDOWS, batch_tokens=32).measure(sets)
    log_p = torch.log_softmax(model.model(input_ids=WINDOWS, use_cache=False).logits[:, :-1].double(), -1)
    for dropped, loss in zip(sets, losses, strict=True):
        with model.without(dropped) as pruned:
            log_q = torch.log_softmax(pruned(input_ids=WINDOWS, use_cache=False).logits[:, :-1].double(), -1)
        assert loss.kl_nats == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), abs=1e-5)
        assert loss.ce_nats == pytest.approx(float(-log_q.gather(-1, WINDOWS[:, 1:, None]).mean()), abs=1e-5)


def test_each_distinct_prefix_is_run_once_and_results_are_remembered(tiny: Callable[..., Path]) -> None:
    """6 blocks; dense runs 6; (5,) shares five of them and runs none more; (3, 4) shares three and runs block 5."""
    evaluator = Evaluator(load(tiny("llama")), WINDOWS)
    evaluator.measure([(5,), (3, 4)])
    assert evaluator.block_tokens == (6 + 0 + 1) * WINDOWS.numel()
    assert evaluator.passes == pytest.approx(7 / 6)
    evaluator.measure([(3, 4), (5,)])
    assert evaluator.block_tokens == 7 * WINDOWS.numel()


def test_what_a_small_memory_has_run_again_is_counted(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the dense model's final states and those of two sets: (0,) and (1,) run 6 + 5 + 4, (2,) 6 + 3."""
    model = load(tiny("llama"))
    runs: list[int] = []
    run = model.run

    def counted(block: int, hidden: torch.Tensor) -> torch.Tensor:
        runs.append(hidden[..., 0].numel())
        return run(block, hidden)

    monkeypatch.setattr(model, "run", counted)
    monkeypatch.setattr("mi_prun.quality.evaluator.STATE_BYTES", 3 * WINDOWS.numel() * model.hidden_size * 4)
    evaluator = Evaluator(model, WINDOWS)
    evaluator.measure([(0,), (1,), (2,)])
    assert evaluator.block_tokens == (6 + 5 + 4 + 6 + 3) * WINDOWS.numel() == sum(runs)


def test_a_loss_that_has_no_perplexity_is_said(tiny: Callable[..., Path]) -> None:
    model = load(tiny("llama"))
    with torch.no_grad():
        model.model.lm_head.weight *= 1e6  # type: ignore[operator, union-attr]
    with pytest.raises(UserError, match="loses over 700 nats a token"):
        Evaluator(model, WINDOWS).measure([(0,)])


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_a_model_that_learned_its_positions_is_measured_whatever_its_vocabulary(
    tiny: Callable[..., Path], load: Callable[[Path], BlockModel], model_type: str
) -> None:
    """Logits of many more rows are made at once than there are positions."""
    names = ("n_positions", "n_ctx") if model_type == "gpt2" else ("max_position_embeddings",)
    model = load(tiny(model_type, vocab_size=17, **dict.fromkeys(names, 24)))
    windows = torch.randint(0, 17, (20, 24), generator=torch.Generator().manual_seed(0))
    (measured,) = Evaluator(model, windows).measure([(1,)])
    with model.without((1,)) as pruned, torch.inference_mode():
        loss = pruned(input_ids=windows, labels=windows, use_cache=False).loss
    assert measured.ce_nats == pytest.approx(float(loss), rel=1e-4)


def test_final_states_end_with_their_batch(tiny: Callable[..., Path]) -> None:
    """Without help from the garbage collector, which may run late: they are a GiB a batch."""
    evaluator = Evaluator(load(tiny("llama")), WINDOWS)
    gc.collect()
    gc.disable()
    try:
        finals = evaluator.final_states(WINDOWS, [(), (0,), (1, 4), (5,)])
        states = [weakref.ref(state) for state in finals]
        del finals
        assert not any(state() is not None for state in states)
    finally:
        gc.enable()
