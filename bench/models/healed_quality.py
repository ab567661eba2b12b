"""The quality of a healed model, as healing judged it: before and after, on the same held-out texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from hashlib import sha256

from bench.records.schema import HealedBy
from mi_prun.checkpoint.healing import Healing
from mi_prun.plan.plan import Quality


def healed_by(healing: Healing | None) -> HealedBy | None:
    """Return what records say of a healing."""
    if healing is None:
        return None
    return HealedBy(
        method=healing.method,
        text=healing.text,
        tokens=healing.tokens,
        fit_tokens=healing.fit_tokens,
        seed=healing.seed,
        settings_sha256=sha256(json.dumps(healing.settings, sort_keys=True).encode()).hexdigest(),
    )


def judged_quality(healing: Healing, *, healed: bool) -> Quality | None:
    """Return the quality over all texts of the gate, their logarithms' mean: of the healed model, or before it.

    None where the manifest has no figures.
    """
    kinds = healing.quality
    window = healing.settings.get("window_tokens")
    if not kinds or not isinstance(window, int):
        return None
    windows = [kind.window_tokens or window for kind in kinds]
    sizes = " and ".join(map(str, dict.fromkeys(windows)))

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return Quality(
        text=" and ".join(kind.text for kind in kinds),
        protocol=f"windows of {sizes} tokens that healing held out; the mean over the texts",
        window_tokens=window,
        windows=sum(kind.predicted_tokens // (size - 1) for kind, size in zip(kinds, windows, strict=True)),
        predicted_tokens=sum(kind.predicted_tokens for kind in kinds),
        dense_perplexity=math.exp(mean([math.log(kind.dense_perplexity) for kind in kinds])),
        pruned_perplexity=math.exp(
            mean([math.log(kind.healed_perplexity if healed else kind.pruned_perplexity) for kind in kinds])
        ),
        kl_nats_per_token=mean([kind.healed_kl_nats if healed else kind.pruned_kl_nats for kind in kinds]),
    )
