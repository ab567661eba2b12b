"""What a manifest says of healing: how the kept blocks were taught to make up for the dropped ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from mi_prun.artefact import Record
from mi_prun.model.shard import Shard

ADAPTER_NAME = "healed_adapter.safetensors"  # in a virtual folder


class HealedQuality(Record):
    """Perplexity and KL to the dense model, nats per token, on one held-out text: pruned, and healed as written.

    window_tokens: of a window; None in a manifest of a release that did not say it.
    """

    text: str
    predicted_tokens: int
    window_tokens: int | None = None
    dense_perplexity: float = Field(gt=0)
    pruned_perplexity: float = Field(gt=0)
    healed_perplexity: float = Field(gt=0)
    pruned_kl_nats: float
    healed_kl_nats: float

    @property
    def nearer(self) -> bool:
        """Whether the healed model is nearer to the dense one than the pruned one is."""
        return self.healed_kl_nats < self.pruned_kl_nats

    @property
    def better(self) -> bool:
        """Whether healing helped: nearer to the dense model, and a lower perplexity where pruning had raised it.

        On text that the dense model is bad at, pruning can lower the perplexity: that is no sign of a better model.
        """
        lower = self.healed_perplexity < self.pruned_perplexity or self.pruned_perplexity <= self.dense_perplexity
        return self.nearer and lower

    @property
    def gap_closed(self) -> float:
        """The share of what pruning cost in log-perplexity that healing won back; 0 where pruning cost nothing."""
        gap = math.log(self.pruned_perplexity / self.dense_perplexity)
        return math.log(self.pruned_perplexity / self.healed_perplexity) / gap if gap > 0 else 0.0


class AskedTask(Record):
    """A choice task asked of the dense model, the pruned one and the healed one: right answers of `items`.

    flips: items that healing turned right or wrong.
    """

    task: str
    items: int
    dense_right: int
    pruned_right: int
    healed_right: int
    flips: int


class Healing(Record):
    """How a model was healed, as its manifest records it.

    method: `fit`, `lora`, `all`, or `fit + lora`, `fit + all`. text: what it was healed on. text_digests: what tells
    its texts from others (`text_digest`); none in a manifest of a release that did not say it.
    tokens: that were trained on. fit_tokens: that the closed form saw. seconds: what it took.
    """

    method: str
    text: str
    tokens: int
    fit_tokens: int
    seconds: float
    seed: int
    text_digests: tuple[str, ...] = ()
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    quality: tuple[HealedQuality, ...] = ()
    tasks: tuple[AskedTask, ...] = ()

    @property
    def seen_tokens(self) -> int:
        """Return how many tokens it was healed on: trained on, else those of the closed form alone."""
        return self.tokens or self.fit_tokens


@dataclass(frozen=True)
class Healed:
    """What is written of a healing. tensors: a file of those that it changed, by the dense model's names.

    adapter: the file of what was learned, for a virtual folder, which has no tensors of its own.
    """

    healing: Healing
    tensors: Shard | None = None
    adapter: Path | None = None
