from __future__ import annotations

import pytest
import torch

from mi_prun.errors import UserError


def bytes_of(weights) -> int:
    """Of every tensor that the model and the student hold, each counted once."""
    tensors = {id(p): p for p in weights.model.model.parameters()}
    tensors |= {id(own.own): own.own for own in weights.own.values()}
    tensors |= {id(p): p for p in weights.trained.values()}
    tensors |= {id(own.shared): own.shared for own in weights.own.values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def test_one_copy_of_the_weights_beside_the_adapters(shared):
    weights = shared((2, 3))
    alone = bytes_of(weights)
    weights.adapt(rank=2, alpha=4, seed=0)
    adapters = sum(4 * parameter.numel() for parameter in weights.trained.values())
    assert 0 < bytes_of(weights) - alone == adapters
    assert adapters < alone / 4


def test_whole_training_holds_a_copy_of_what_is_trained_and_of_nothing_else(shared):
    weights = shared((2, 3))
    alone = bytes_of(weights)
    weights.give_all(torch.float32)
    trained = sum(4 * weights.shared(name).numel() for name in weights.names((1, 4, 5)))
    assert bytes_of(weights) - alone == trained


def test_what_is_trained_has_one_order_whatever_was_given_first(shared):
    """A start has the refitted matrices before the rest, a resume has not; the norm of gradients goes by the order."""
    weights, refitted = shared((2, 3)), shared((2, 3))
    last = weights.names((5,))[-1]
    refitted.give(last, refitted.current(last).detach().clone())
    for each in (weights, refitted):
        each.give_all(torch.float32)
    assert list(refitted.trained) == list(weights.trained)


def test_teacher_is_the_dense_model_whatever_the_student_has(shared, tokens):
    weights = shared((2, 3))
    blocks = range(6)
    with torch.no_grad():
        dense = weights.run(weights.embed(tokens), blocks)
        pruned = weights.run(weights.embed(tokens), weights.kept)
        weights.adapt(rank=2, alpha=4, seed=0)
        assert torch.equal(weights.run(weights.embed(tokens), blocks), dense)
        with weights.student():
            assert torch.equal(weights.run(weights.embed(tokens), weights.kept), pruned)  # B of LoRA begins at 0
            for parameter in weights.trained.values():
                parameter.add_(0.1)
            assert not torch.allclose(weights.run(weights.embed(tokens), weights.kept), pruned)
        assert torch.equal(weights.run(weights.embed(tokens), blocks), dense)


def test_what_was_learned_is_what_the_student_gave(shared, tokens):
    weights = shared((2, 3))
    weights.give(weights.names((1,))[0], weights.shared(weights.names((1,))[0]) * 1.1)
    weights.adapt(rank=2, alpha=4, seed=0)
    with torch.no_grad():
        for parameter in weights.trained.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        with weights.student():
            taught = weights.run(weights.embed(tokens), weights.kept)
        names = {name: name for name in weights.names(weights.trained_blocks)}
        learned = weights.learned(names, dict.fromkeys(names, torch.float32))
        weights.settle((name, learned.merged(name, weights.shared(name))) for name in learned.names)
        with weights.student():
            assert torch.allclose(weights.run(weights.embed(tokens), weights.kept), taught, atol=1e-4)
        assert weights.own == weights.adapters == {}  # there is no second copy of what was learned


def test_no_block_before_the_block_in_front_of_the_gap_is_trained(shared):
    weights = shared((3,))
    assert (weights.first, weights.trained_blocks) == (2, (2, 4, 5))
    weights.adapt(rank=2, alpha=4, seed=0)
    assert all(int(name.split(".")[2]) in (2, 4, 5) for name in weights.trained)


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "opt", "gemma2", "olmo2", "falcon"])
def test_adapters_sit_on_every_linear_layer_of_other_families(shared, tokens, model_type):
    fields = {"n_head": 4, "n_embd": 32, "n_layer": 6, "n_positions": 64} if model_type == "gpt2" else {}
    weights = shared((2,), model_type, **fields)
    weights.adapt(rank=2, alpha=4, seed=0)
    with weights.student():
        weights.run(weights.embed(tokens), weights.kept).square().sum().backward()
    assert all(parameter.grad is not None for name, parameter in weights.trained.items() if name.endswith("lora_B"))


def test_a_rank_larger_than_a_matrix_is_refused(shared):
    with pytest.raises(UserError, match=r"--rank 17 is larger .*k_proj.*16 x 32"):
        shared((2,)).adapt(rank=17, alpha=4, seed=0)


def test_nothing_dropped_is_nothing_to_heal(shared):
    with pytest.raises(UserError, match="drops no block"):
        shared(())


def round_off(weights) -> None:
    """Round every weight to bfloat16, as most models are stored."""
    with torch.no_grad():
        for parameter in weights.model.model.parameters():
            parameter.copy_(parameter.bfloat16())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("train", ["lora", "all"])
def test_narrowed_weights_give_what_products_in_bfloat16_give(shared, tokens, tied, train):
    weights = shared((2, 3), tie_word_embeddings=tied)
    round_off(weights)
    weights.give_all(torch.float32) if train == "all" else weights.adapt(rank=2, alpha=4, seed=0)
    model = weights.model.model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def said() -> list[torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            dense = weights.run(weights.embed(tokens), range(6))
            with weights.student():
                ours = weights.run(weights.embed(tokens), weights.kept)
            return [dense, ours, weights.model.logits(dense)]

    wanted, held = said(), bytes_of(weights)
    with weights.narrowed(torch.bfloat16):
        assert all(torch.equal(one, two) for one, two in zip(said(), wanted, strict=True))
        assert bytes_of(weights) < held
        embedding = model.get_input_embeddings().weight
        assert embedding.dtype == torch.float32
        assert model.lm_head.weight.dtype == torch.bfloat16
        assert all(parameter.dtype == torch.float32 for parameter in weights.trained.values())
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_weights_that_would_lose_something_are_not_narrowed(shared):
    weights = shared((2, 3))
    round_off(weights)
    head = weights.model.model.lm_head.weight
    with torch.no_grad():
        head[0, 0] = 1 + 2**-20
    with weights.narrowed(torch.bfloat16):
        assert head.dtype == torch.float32
        assert weights.shared(weights.names((1,))[0]).dtype == torch.bfloat16
    with weights.narrowed(torch.float32):
        assert weights.shared(weights.names((1,))[0]).dtype == torch.float32
