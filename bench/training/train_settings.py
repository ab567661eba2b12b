"""Settings of `mi-prun-bench train`, their defaults and what they may be. No torch is imported."""

from __future__ import annotations

import math

from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.settings import check_seed

FAMILIES = ("llama", "qwen3")
LEAST = {"blocks": 2, "hidden": 8, "heads": 1, "vocabulary": 300, "context": 8, "tokens": 1, "batch_tokens": 1}


class TrainSettings(Record):
    """How a model is trained. hidden: width of a boundary state. context: tokens in a window. tokens: seen in all."""

    family: str = "llama"
    blocks: int = 12
    hidden: int = 256
    heads: int = 4
    vocabulary: int = 4_096
    context: int = 512
    tokens: int = 11_000_000
    batch_tokens: int = 4_096
    learning_rate: float = 1.5e-3
    seed: int = 0

    @property
    def windows_per_step(self) -> int:
        """Windows in a step."""
        return max(1, self.batch_tokens // self.context)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return math.ceil(self.tokens / (self.windows_per_step * self.context))

    def check(self) -> None:
        """Refuse, in one line, what no model can be made of."""
        if self.family not in FAMILIES:
            raise UserError(f"--family must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if self.hidden % (2 * self.heads):
            raise UserError(f"--hidden must be a multiple of twice --heads, got {self.hidden} and {self.heads}")
        check_seed(self.seed)
        if not 0 < self.learning_rate < 1:
            raise UserError(f"--learning-rate must be in (0, 1), got {self.learning_rate}")
