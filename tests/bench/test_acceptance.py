"""A draft's tokens as the engine's /metrics counts them."""

from __future__ import annotations

import pytest

from bench.acceptance import acceptance_of
from mi_prun.errors import UserError

METRICS = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 100.0
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 300.0
# HELP vllm:spec_decode_num_accepted_tokens_total Number of accepted tokens.
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 150.0
# HELP vllm:spec_decode_num_accepted_tokens_per_pos_total Accepted tokens per draft position.
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 90.0
"""


def test_the_engines_counters() -> None:
    found = acceptance_of(METRICS)
    assert (found.drafts, found.drafted_tokens, found.accepted_tokens) == (100, 300, 150)
    assert found.rate == 0.5
    assert found.length == 2.5


def test_an_engine_that_drafted_nothing() -> None:
    with pytest.raises(UserError, match="drafted no token"):
        acceptance_of(METRICS.replace("300.0", "0.0"))
