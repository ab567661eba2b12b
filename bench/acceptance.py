"""What a draft's tokens came to, as the engine itself counts (`vllm:spec_decode_*` of /metrics), warm-up included."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from bench.record import Acceptance
from mi_prun.errors import UserError


def acceptance_of(metrics: str) -> Acceptance:
    """Read the counters off a Prometheus page of vLLM; summed over engines."""
    sums = {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            for name in sums:
                if sample.name == f"vllm:spec_decode_num_{name}_total":
                    sums[name] += int(sample.value)
    if not sums["draft_tokens"]:
        raise UserError("the engine drafted no token (vllm:spec_decode_num_draft_tokens on its /metrics)")
    return Acceptance(
        drafts=sums["drafts"], drafted_tokens=sums["draft_tokens"], accepted_tokens=sums["accepted_tokens"]
    )
