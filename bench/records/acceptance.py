"""Count how many tokens of a draft were accepted, by the engine's own counters (`vllm:spec_decode_*` of /metrics).

The counters run since the engine's start. What a load came to is the difference of two readings, so that warm-ups and
other loads are in neither.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families

from bench.records.schema import DraftAcceptance
from mi_prun.errors import UserError

Counts = dict[str, int]
NAMES = ("drafts", "draft_tokens", "accepted_tokens")


def counts_of(metrics: str) -> Counts:
    """Read the counters off a Prometheus page of vLLM; summed over engines."""
    sums = dict.fromkeys(NAMES, 0)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            for name in sums:
                if sample.name == f"vllm:spec_decode_num_{name}_total":
                    sums[name] += int(sample.value)
    return sums


def acceptance_between(before: Counts, after: Counts) -> DraftAcceptance:
    """Return what was accepted between two readings. Raises UserError where nothing was drafted."""
    drafts, drafted, accepted = (after[name] - before[name] for name in NAMES)
    if drafted < 1:
        raise UserError("the engine drafted no token (vllm:spec_decode_num_draft_tokens on its /metrics)")
    return DraftAcceptance(drafts=drafts, drafted_tokens=drafted, accepted_tokens=accepted)


def acceptance_over(rounds: Sequence[DraftAcceptance | None]) -> DraftAcceptance | None:
    """Sum what was accepted over the rounds of a load; None where no round says it."""
    known = [acceptance for acceptance in rounds if acceptance is not None]
    if not known:
        return None
    return DraftAcceptance(
        drafts=sum(acceptance.drafts for acceptance in known),
        drafted_tokens=sum(acceptance.drafted_tokens for acceptance in known),
        accepted_tokens=sum(acceptance.accepted_tokens for acceptance in known),
    )
