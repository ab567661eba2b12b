"""What no model can be made of is refused in one line."""

from __future__ import annotations

import pytest

from bench.training.train_settings import TrainSettings
from mi_prun.errors import UserError


def test_steps_see_at_least_the_tokens_asked_for() -> None:
    settings = TrainSettings(context=100, batch_tokens=250, tokens=1_001)
    assert (settings.windows_per_step, settings.steps) == (2, 6)
    assert TrainSettings(context=100, batch_tokens=50).windows_per_step == 1
    TrainSettings().check()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"family": "gpt"}, "--family must be one of llama, qwen3, got 'gpt'"),
        ({"blocks": 1}, "--blocks must be at least 2, got 1"),
        ({"batch_tokens": 0}, "--batch-tokens must be at least 1, got 0"),
        ({"hidden": 20, "heads": 4}, "--hidden must be a multiple of twice --heads, got 20 and 4"),
        ({"seed": -1}, "--seed must be in 0..2147483647, got -1"),
        ({"learning_rate": 1.0}, r"--learning-rate must be in \(0, 1\), got 1.0"),
    ],
)
def test_settings_that_will_not_do(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TrainSettings(**fields).check()  # type: ignore[arg-type]
