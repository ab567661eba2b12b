from __future__ import annotations

import pytest
import torch

from mi_prun.recovery import distillation
from mi_prun.recovery.distillation import Distillation, losses


def plain(model, student, teacher, tokens, temperature, share):
    """The loss by autograd, with all logits in memory."""
    z, t = model.logits(student)[:, :-1], model.logits(teacher)[:, :-1]
    log_q, log_p = torch.log_softmax(z / temperature, -1), torch.log_softmax(t / temperature, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    ce = torch.nn.functional.cross_entropy(z.flatten(0, 1), tokens[:, 1:].flatten())
    return (1 - share) * temperature**2 * kl + share * ce


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.0), (2.0, 0.0), (1.0, 0.3), (3.0, 0.5), (1.0, 1.0)])
def test_the_written_gradient_is_that_of_the_loss(shared, tokens, monkeypatch, temperature, share):
    weights = shared((2, 3))
    with torch.no_grad():
        teacher = weights.run(weights.embed(tokens), range(6))
        start = weights.run(weights.embed(tokens), weights.kept)
    wanted = start.clone().requires_grad_()
    plain(weights.model, wanted, teacher, tokens, temperature, share).backward()
    monkeypatch.setattr(distillation, "LEAST_ROWS", 7)
    monkeypatch.setitem(distillation.CHUNK_BYTES, "cpu", 1)
    monkeypatch.setitem(distillation.CACHED_BYTES, "cpu", 3 * 4 * 97)  # three rows, two chunks in a row and one more
    state = start.clone().requires_grad_()
    kl = Distillation(temperature, share).backward(weights.model, state, teacher, tokens, 1.0)
    assert torch.allclose(state.grad, wanted.grad, atol=1e-7)
    assert kl / 90 == pytest.approx(float(plain(weights.model, start, teacher, tokens, 1.0, 0.0)), rel=1e-5)


def test_rows_that_stay_in_a_cache_are_at_least_one(monkeypatch):
    logits = torch.randn(5, 97, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss, targets = Distillation(), torch.arange(5)
    whole = loss._gradient(logits, -logits, targets)
    monkeypatch.setitem(distillation.CACHED_BYTES, "cpu", 1)
    kl, gradient = loss._gradient(logits, -logits, targets)
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, whole[1])
    assert kl == pytest.approx(whole[0], rel=1e-6)


def test_losses_of_the_dense_model_itself(shared, tokens):
    weights = shared((2,))
    with torch.no_grad():
        dense = weights.run(weights.embed(tokens), range(6))
        ce = torch.nn.functional.cross_entropy(
            weights.model.logits(dense)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
        )
        found = losses(weights.model, dense, dense, tokens)
    assert found[2] == 0
    assert found[:2].tolist() == pytest.approx([float(ce)] * 2, rel=1e-5)
