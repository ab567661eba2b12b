"""What is kept of a model's answers: the scores of tasks with every item's, and sampled generations. Lines are
appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from bench.records.schema import SCHEMA_VERSION, DenseModel, MeasuredArm, Provenance
from mi_prun.artefact import Record

TASKS_NAME = "tasks.jsonl"
GENERATIONS_NAME = "generations.jsonl"
# Engines compute in 16 bits, whose logits are coarse: single tokens differ by a few hundredths of a nat, by chance in
# either direction. Another model, another position or another temperature differs by more than this on the mean.
TOLERANCE_MEAN_NATS = 0.05


class TaskScore(Record):
    """The score of a task.

    source: `hub`, or the name of a local file. fewshot: examples before each item. metric: the one that models are
    compared by. scores: every metric of lm-eval's.

    correct: for each metric that is 0 or 1 for an item, one bit an item, in hexadecimal, the first item's bit first.
    items_sha256: of the texts that the model was given and of the right answers, in order: only equal ones make pairs.
    truncated_items: items whose text did not fit into the context and lost its beginning.
    """

    task: str
    source: str
    fewshot: int
    metric: str
    scores: dict[str, float]
    correct: dict[str, str]
    items: int = Field(ge=1)
    items_sha256: str
    truncated_items: int

    @model_validator(mode="after")
    def _every_item_has_a_bit(self) -> TaskScore:
        if self.metric not in self.correct or self.metric not in self.scores:
            raise ValueError(f"metric {self.metric} has no score or no items")
        for name, text in self.correct.items():
            if len(text) != 2 * -(-self.items // 8) or not set(text) <= set("0123456789abcdef"):
                raise ValueError(f"correct.{name} does not hold {self.items} items")
        return self

    @property
    def score(self) -> float:
        """The score by `metric`."""
        return self.scores[self.metric]

    def answers(self) -> list[bool]:
        """Return for each item whether it was right by `metric`."""
        return unpacked(self.correct[self.metric], self.items)


class LogprobCheck(Record):
    """How far the endpoint's log-probabilities are from transformers': absolute differences of a few strings' tokens,
    nats.
    """

    strings: int
    tokens: int
    mean_nats: float
    max_nats: float
    tolerance_mean_nats: float
    direct: str  # dtype and device of the other side
    rounding_nats: float = 0.0  # of the model's own type, let pass beside the tolerance

    @property
    def let_pass_nats(self) -> float:
        """The largest mean difference that passes."""
        return self.tolerance_mean_nats + self.rounding_nats


class Origin(Record):
    """What a line comes from.

    run: the same for models that were asked together. context_tokens: of the server. endpoint: whether the user named
    the server; else it was started for this, with the flags of `provenance`.
    """

    schema_version: Literal[2, 3] = SCHEMA_VERSION
    run: str
    time: str
    dense: DenseModel
    arm: MeasuredArm
    context_tokens: int
    endpoint: bool
    provenance: Provenance


class TaskRecord(Origin):
    """One task of one model. limit: of items; None for all. logprobs: None where the check was left out."""

    limit: int | None
    logprobs: LogprobCheck | None
    score: TaskScore


class Continuation(Record):
    """A prompt and what a model wrote after it."""

    prompt: str
    text: str


class GenerationRecord(Origin):
    """Continuations of the same prompts, sampled with the same seed. max_tokens: of each, at most."""

    temperature: float
    seed: int
    max_tokens: int
    continuations: tuple[Continuation, ...]


def packed(bits: Sequence[bool]) -> str:
    """Pack a bit for each item in hexadecimal. The last byte is filled up with zeros."""
    whole = [*bits, *[False] * (-len(bits) % 8)]
    return bytes(
        sum(bit << (7 - place) for place, bit in enumerate(whole[start : start + 8]))
        for start in range(0, len(whole), 8)
    ).hex()


def unpacked(text: str, count: int) -> list[bool]:
    """Return the first `count` bits that `packed` packed."""
    return [bool(byte >> (7 - place) & 1) for byte in bytes.fromhex(text) for place in range(8)][:count]
