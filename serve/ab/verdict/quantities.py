"""What is measured of each answer, one table: the verdict's figures, and what guardrails may speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve.ab.verdict.event import Observation

ARM_FAULTS = ("upstream_error", "timeout", "disconnected")
FINISH_REASONS = ("stop", "length", "tool_calls", "function_call", "content_filter", "abort", "error")


@dataclass(frozen=True)
class Quantity:
    """values: of a request; None where it has none. The mean of an arm is sum of y over sum of x."""

    title: str
    unit: str
    y_x: Callable[[Observation], tuple[float, float] | None]
    values: Callable[[Observation], Sequence[float]]


def _ttft(seen: Observation) -> tuple[float, float] | None:
    """Of streams: the first byte of any other answer is its last token's."""
    return (1e3 * seen.ttft_s, 1.0) if seen.ttft_s is not None and seen.streamed and seen.status == 200 else None


def _itl(seen: Observation) -> tuple[float, float] | None:
    return (1e3 * sum(seen.itl_s), float(len(seen.itl_s))) if seen.itl_s and seen.status == 200 else None


def _e2e(seen: Observation) -> tuple[float, float] | None:
    return (1e3 * seen.e2e_s, 1.0) if seen.outcome == "ok" else None


def _speed(seen: Observation) -> tuple[float, float] | None:
    return (seen.output_tokens, seen.e2e_s) if seen.outcome == "ok" and seen.output_tokens and seen.e2e_s > 0 else None


def _length(seen: Observation) -> tuple[float, float] | None:
    return (seen.output_tokens, 1.0) if seen.outcome == "ok" and seen.output_tokens is not None else None


def _ratio(y_x: Callable[[Observation], tuple[float, float] | None]) -> Callable[[Observation], Sequence[float]]:
    def values(seen: Observation) -> Sequence[float]:
        found = y_x(seen)
        return () if found is None else (found[0] / found[1],)

    return values


QUANTITIES: dict[str, Quantity] = {
    "ttft_ms": Quantity("TTFT", "ms", _ttft, _ratio(_ttft)),
    "itl_ms": Quantity("ITL", "ms", _itl, lambda seen: [1e3 * gap for gap in seen.itl_s]),
    "e2e_ms": Quantity("end-to-end", "ms", _e2e, _ratio(_e2e)),
    "tokens_per_s": Quantity("tokens/s", "tokens/s", _speed, _ratio(_speed)),
    "output_tokens": Quantity("output length", "tokens", _length, _ratio(_length)),
}


def known_finish_reason(reason: str) -> str:
    """An engine's word, or `other`: series and counts do not grow with what engines make up."""
    return reason if reason in FINISH_REASONS else "other"
