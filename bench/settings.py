"""Settings of a measurement under load, and their defaults. They live here only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Alive = Literal["together", "alone"]

AUTO = "auto"
# Input and output tokens. A prompt costs FLOPs, an answer costs reads of the weights: the two are bound differently.
PRESETS = {"balanced": (128, 64), "prefill-heavy": (1024, 16), "decode-heavy": (64, 256)}


@dataclass(frozen=True)
class WorkloadSettings:
    """The loads that are asked for.

    presets: names of PRESETS. input_tokens, output_tokens: lengths in their place. trace: a file of lengths, beside
    them.

    text: prompts are pieces of it, instead of random tokens, which no draft can predict. prompts_from: a
    file whose rows are the prompts, in place of it; they have their own lengths.

    rates: requests/s, `auto` (shares of what the dense model can give), or none. prompts: in a round; None takes twice
    the concurrency, at least eight. warmups: requests before an engine's first round of a load, not counted.
    """

    presets: tuple[str, ...] = ("balanced",)
    input_tokens: int | None = None
    output_tokens: int | None = None
    trace: Path | None = None
    text: str | None = None
    prompts_from: Path | None = None
    concurrency: tuple[int, ...] = (1, 8, 64)
    rates: tuple[float, ...] | Literal["auto"] = ()
    prompts: int | None = None
    warmups: int = 2
    rounds: int = 3
    seed: int = 0


@dataclass(frozen=True)
class MeasureSettings:
    """How loads are put on engines.

    alive: engines side by side or one at a time; None takes what fits. again: a new run though one is there.
    """

    loads: WorkloadSettings = field(default_factory=WorkloadSettings)
    serve_flags: tuple[str, ...] = ()
    alive: Alive | None = None
    again: bool = False


# Of `run` and `draft`: one load that takes minutes on a small machine.
RUN_PROMPTS = 32  # in a round, or twice those in flight
RUN_WORKLOADS = WorkloadSettings(input_tokens=128, output_tokens=64, concurrency=(4,), warmups=4)
