from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.recovery.healing_text import HealingText, Supply
from mi_prun.recovery.judge import Judge
from mi_prun.recovery.training import CHECK_AT, LEAST_RATE, LEAST_RMS, Training, step_windows, train_dtype
from mi_prun.recovery.training_state import Progress
from mi_prun.settings import LEARNING_RATES, SHARE_OF_RMS, HealSettings


@pytest.fixture
def training(shared, tmp_path):
    """`training(weights, settings)` on random tokens."""

    def make(weights, settings: HealSettings) -> Training:
        tokens = torch.randint(0, 97, (40, 16), generator=torch.Generator().manual_seed(2))
        text = HealingText([Supply("random", 1.0, tokens[:8], lambda place: tokens[8:][place : place + 256])], 0.5)
        judge = Judge(weights, text.validation, 4)
        return Training(
            weights, text, judge, settings, path=tmp_path / "state", fingerprint="", begun=Progress()
        )  # fmt: skip

    return make


SETTINGS = HealSettings(
    tokens=256, batch_tokens=64, forward_tokens=64, learning_rate=1e-2, rank=4, train_dtype="float32"
)


def test_small_numbers_get_a_smaller_rate_where_blocks_are_trained_whole(shared, training):
    """By the default rate alone, and never more than it."""
    weights = shared((2, 3))
    small, large, zeros = weights.names((1,))[:3]
    with torch.no_grad():
        weights.shared(small).fill_(0.01)
        weights.shared(large).fill_(50.0)
        weights.shared(zeros).zero_()
    weights.give_all(torch.float32)
    whole = replace(SETTINGS, train="all", learning_rate=None)
    rates = {
        run.names[parameter]: group["lr"] / run.rate(0.0)
        for run in [training(weights, whole)]
        for group in (run._step(), run.optimizer.param_groups)[1]
        for parameter in group["params"]
    }
    assert rates.keys() == weights.trained.keys()
    assert rates[small] == pytest.approx(SHARE_OF_RMS * 0.01 / LEARNING_RATES["all"], rel=1e-5)
    assert rates[large] == 1
    assert rates[zeros] == pytest.approx(SHARE_OF_RMS * LEAST_RMS / LEARNING_RATES["all"], rel=1e-5)
    named = training(weights, replace(whole, learning_rate=1e-4))
    assert [group["share"] for group in named.optimizer.param_groups] == [1]


def gradients(weights, training) -> dict[str, torch.Tensor]:
    tokens = training.text.windows(0, training.step_windows)
    for part in torch.split(tokens, training.micro_windows):
        training._backward(part, len(part) / len(tokens))
    return {name: parameter.grad for name, parameter in weights.trained.items()}


@pytest.mark.parametrize("change", [{"forward_tokens": 16}, {"forward_tokens": 48}, {"checkpoint_blocks": True}])
def test_accumulation_and_checkpoints_change_no_gradient(shared, training, change):
    found = []
    for settings in (SETTINGS, replace(SETTINGS, **change)):
        weights = shared((2, 3))
        weights.give_all(torch.float32)
        found.append(gradients(weights, training(weights, settings)))
    one, two = found
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_products_in_bfloat16_give_about_the_same_gradient(shared, training):
    found = []
    for dtype in ("float32", "bfloat16"):
        weights = shared((2, 3))
        weights.give_all(torch.float32)
        run = training(weights, replace(SETTINGS, train_dtype=dtype))
        assert run.dtype == getattr(torch, dtype)
        found.append(gradients(weights, run))
    exact, rounded = (torch.cat([grad.flatten() for grad in each.values()]) for each in found)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("has", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "cpu_name": "AMD EPYC"}, torch.float32),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
    ],
)
def test_products_are_of_the_models_own_dtype_unless_told_or_the_processor_is_faster(shared, monkeypatch, has, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    model = shared((2,)).model
    assert train_dtype(model, None) == dtype
    assert train_dtype(model, "bfloat16") == torch.bfloat16
    assert train_dtype(model, "float32") == torch.float32
    model.model.to(torch.bfloat16)
    assert train_dtype(model, None) == torch.bfloat16
    with pytest.raises(UserError, match="--train-dtype float32: the model is in bfloat16 on cpu; leave the option out"):
        train_dtype(model, "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", ["lora", "all"])
def test_the_student_comes_nearer_to_the_teacher_which_stays(shared, training, train, dtype):
    weights = shared((2, 3))
    weights.model.model.to(dtype)
    before = {name: parameter.clone() for name, parameter in weights.model.model.named_parameters()}
    weights.give_all(torch.float32) if train == "all" else weights.adapt(4, 8, 0)
    run = training(weights, replace(SETTINGS, tokens=2_048, train_dtype=None))
    with run._computed():
        (start,) = run.judge.measure()
    progress = run.run()
    with run._computed():
        (end,) = run.judge.measure()
    assert (progress.tokens, progress.step) == (2_048, 32)
    assert end.kl_nats < start.kl_nats
    assert end.kl_nats == pytest.approx(min(progress.checks_nats), rel=1e-5)
    names = {id(parameter) for parameter in weights.trained.values()}
    after = {n: p for n, p in weights.model.model.named_parameters() if id(p) not in names}
    assert all(torch.equal(before[name.replace(".base_layer", "")], p) for name, p in after.items())


def test_the_rate_warms_up_and_falls(shared, training):
    weights = shared((2,))
    weights.adapt(4, 8, 0)
    run = training(weights, SETTINGS)
    rates = [run.rate(share / 100) for share in range(101)]
    assert 0 < rates[0] < rates[2] < rates[5]
    assert max(rates) == pytest.approx(1e-2, rel=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-2 * LEAST_RATE)


@pytest.mark.parametrize(
    ("batch_tokens", "window", "device", "processes", "windows"),
    [(None, 512, "cpu", 1, 1), (None, 128, "cpu", 1, 4), (None, 512, "cuda", 1, 2), (None, 512, "cpu", 4, 4),
     (None, 128, "cpu", 3, 6),
     (None, 2048, "cpu", 1, 1), (1_500, 512, "cpu", 1, 3), (64, 512, "cpu", 4, 1)],
)  # fmt: skip
def test_a_step_has_what_fits_the_device_and_a_window_for_each_process(
    batch_tokens, window, device, processes, windows
):
    assert step_windows(batch_tokens, window, torch.device(device), processes) == windows


@pytest.mark.parametrize("most", [1e-3, 1e3])
def test_a_long_gradient_is_cut_and_a_short_one_stays(shared, training, monkeypatch, most):
    monkeypatch.setattr("mi_prun.recovery.training.MOST_GRADIENT", most)
    weights = shared((2, 3))
    weights.give_all(torch.float32)
    run = training(weights, SETTINGS)
    before = {name: gradient.clone() for name, gradient in gradients(weights, run).items()}
    norm = run._clipped()
    assert norm == pytest.approx(float(torch.cat([gradient.flatten() for gradient in before.values()]).norm()))
    assert 1e-3 < norm < 1e3
    for name, parameter in weights.trained.items():
        assert torch.allclose(parameter.grad, before[name] * min(1.0, most / norm), rtol=1e-4), name


def test_minutes_end_it_too(shared, training):
    weights = shared((2,))
    weights.adapt(4, 8, 0)
    run = training(weights, replace(SETTINGS, tokens=None, minutes=0.02))
    progress = run.run()
    assert progress.seconds >= 1
    assert len(progress.checks_nats) == len(CHECK_AT)


@pytest.mark.parametrize(
    ("losses", "best", "tokens"),
    [
        ([4.0, 2.0, 1.0, 3.0], 2, 1_024),
        ([4.0, 2.0, 3.0, 1.0], 3, 1_024),
        ([4.0, 5.0, 4.0, 3.0], 3, 1_024),  # a little worse while the rate is high
        ([4.0, 4.0, 4.0, 4.0], 0, 1_024),
        ([4.0, 2.0, 5.1], 1, 768),
        ([4.0, 5.1], 0, 384),
    ],
)
def test_the_best_state_is_what_stays_and_one_that_goes_wrong_is_stopped(
    shared, training, monkeypatch, losses, best, tokens
):
    weights = shared((2,))
    weights.adapt(4, 8, 0)
    run = training(weights, replace(SETTINGS, tokens=1_024))
    measure, seen = run.judge.measure, []

    def told():
        (found,) = measure()
        seen.append({name: parameter.clone() for name, parameter in weights.trained.items()})
        return [replace(found, kl_nats=losses[len(seen) - 1])]

    monkeypatch.setattr(run.judge, "measure", told)
    progress = run.run()
    assert progress.checks_nats == tuple(losses)
    assert (progress.helped, progress.tokens) == (best > 0, tokens)
    assert all(torch.equal(parameter, seen[best][name]) for name, parameter in weights.trained.items())
    assert run.run() == progress  # nothing more is done, after a restart neither
