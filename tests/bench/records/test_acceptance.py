"""A draft's tokens as the engine's /metrics counts them, from one moment to another."""

from __future__ import annotations

import pytest

from bench.records.acceptance import acceptance_between, acceptance_over, counts_of
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
    assert counts_of(METRICS) == {"drafts": 100, "draft_tokens": 300, "accepted_tokens": 150}
    assert counts_of("") == {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}


def test_what_was_counted_before_a_load_is_not_of_it() -> None:
    before = {"drafts": 100, "draft_tokens": 300, "accepted_tokens": 150}
    acceptance = acceptance_between(before, {"drafts": 120, "draft_tokens": 360, "accepted_tokens": 165})
    assert (acceptance.drafts, acceptance.drafted_tokens, acceptance.accepted_tokens) == (20, 60, 15)
    assert acceptance.rate == 0.25
    assert acceptance.length == 1.75


def test_the_rounds_of_a_load_are_summed() -> None:
    none = dict.fromkeys(("drafts", "draft_tokens", "accepted_tokens"), 0)
    rounds = [
        acceptance_between(none, {"drafts": n, "draft_tokens": 3 * n, "accepted_tokens": accepted})
        for n, accepted in ((10, 30), (30, 30))
    ]
    acceptance = acceptance_over(rounds)
    assert acceptance is not None
    assert (acceptance.drafts, acceptance.rate, acceptance.length) == (40, 0.5, 2.5)
    assert acceptance_over([None, None]) is None


def test_an_engine_that_drafted_nothing() -> None:
    counts = counts_of(METRICS)
    with pytest.raises(UserError, match="drafted no token"):
        acceptance_between(counts, counts)
