"""What records say of a healing."""

from __future__ import annotations

from bench.models.healed_quality import healed_by, judged_quality
from mi_prun.checkpoint.healing import HealedQuality, Healing


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


def test_texts_in_windows_of_two_lengths_are_counted_each_in_its_own() -> None:
    kinds = [
        HealedQuality(
            text=text, predicted_tokens=2_044, window_tokens=window, dense_perplexity=4.0, pruned_perplexity=16.0,
            healed_perplexity=8.0, pruned_kl_nats=0.9, healed_kl_nats=0.3,
        )
        for text, window in (("wiki", 512), ("self", None))
    ]  # fmt: skip
    made = Healing(
        method="fit", text="wiki", tokens=0, fit_tokens=64, seconds=1.0, seed=0, settings={"window_tokens": 8},
        quality=tuple(kinds),
    )  # fmt: skip
    quality = judged_quality(made, healed=True)
    assert quality is not None
    assert quality.windows == 4 + 292  # a manifest without a window has that of the settings
    assert quality.protocol.startswith("windows of 512 and 8 tokens")
    assert quality.predicted_tokens == 2 * 2_044
