"""What records say of a healing."""

from __future__ import annotations

from bench.models.healed_quality import healed_by
from mi_prun.checkpoint.healing import Healing


def test_healings_of_other_settings_are_told_apart() -> None:
    made = [
        healed_by(
            Healing(
                method="lora", text="a", tokens=9, fit_tokens=0, seconds=1.0, seed=0, settings={"learning_rate": rate}
            )
        )
        for rate in (1e-3, 1e-3, 3e-4)
    ]
    assert made[0] == made[1] != made[2]
    assert healed_by(None) is None
