"""A table of what is measured of each answer: the verdict's figures, and what guardrails may speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve.ab.verdict.event import Event

FINISH_REASONS = ("stop", "length", "tool_calls", "function_call", "content_filter", "abort", "error")


@dataclass(frozen=True)
class Quantity:
    """One figure of an answer.

    y_x: None where the answer has none; the mean of an arm is sum of y over sum of x. values: for percentiles.
    """

    title: str
    unit: str
    y_x: Callable[[Event], tuple[float, float] | None]
    values: Callable[[Event], Sequence[float]]


def _ttft(event: Event) -> tuple[float, float] | None:
    """TTFT of streams only: the first byte of any other answer is its last token's."""
    return (1e3 * event.ttft_s, 1.0) if event.ttft_s is not None and event.streamed and event.status == 200 else None


def _itl(event: Event) -> tuple[float, float] | None:
    return (1e3 * sum(event.itl_s), float(len(event.itl_s))) if event.itl_s and event.status == 200 else None


def _e2e(event: Event) -> tuple[float, float] | None:
    return (1e3 * event.e2e_s, 1.0) if event.outcome == "ok" else None


def _speed(event: Event) -> tuple[float, float] | None:
    return (
        (event.output_tokens, event.e2e_s)
        if event.outcome == "ok" and event.output_tokens and event.e2e_s > 0
        else None
    )


def _length(event: Event) -> tuple[float, float] | None:
    return (event.output_tokens, 1.0) if event.outcome == "ok" and event.output_tokens is not None else None


def _ratio(y_x: Callable[[Event], tuple[float, float] | None]) -> Callable[[Event], Sequence[float]]:
    def values(event: Event) -> Sequence[float]:
        pair = y_x(event)
        return () if pair is None else (pair[0] / pair[1],)

    return values


QUANTITIES: dict[str, Quantity] = {
    "ttft_ms": Quantity("TTFT", "ms", _ttft, _ratio(_ttft)),
    "itl_ms": Quantity("ITL", "ms", _itl, lambda event: [1e3 * gap for gap in event.itl_s]),
    "e2e_ms": Quantity("end-to-end", "ms", _e2e, _ratio(_e2e)),
    "tokens_per_s": Quantity("tokens/s", "tokens/s", _speed, _ratio(_speed)),
    "output_tokens": Quantity("output length", "tokens", _length, _ratio(_length)),
}


def known_finish_reason(reason: str) -> str:
    """Return an engine's word, or `other`: series and counts do not grow with what engines make up."""
    return reason if reason in FINISH_REASONS else "other"
