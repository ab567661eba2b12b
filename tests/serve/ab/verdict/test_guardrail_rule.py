"""The grammar of guardrails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_prun.errors import UserError
from serve.ab.verdict.guardrail_rule import GuardrailRule, parse_guardrail

LOGPROBS = "logprob_difference_nats"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("error_rate<1%", GuardrailRule("error_rate<1%", "error_rate", True, 0.01)),
        ("error_rate < 0.01", GuardrailRule("error_rate < 0.01", "error_rate", True, 0.01)),
        (" agreement>0.6 ", GuardrailRule("agreement>0.6", "agreement", False, 0.6)),
        ("agreement>60%", GuardrailRule("agreement>60%", "agreement", False, 0.6)),
        ("ttft_ms<1.2x", GuardrailRule("ttft_ms<1.2x", "ttft_ms", True, 1.2, relative=True)),
        ("tokens_per_s>.9x", GuardrailRule("tokens_per_s>.9x", "tokens_per_s", False, 0.9, relative=True)),
        ("error_rate<1.5x", GuardrailRule("error_rate<1.5x", "error_rate", True, 1.5, relative=True)),
        (
            "logprob_difference_nats>-.1",
            GuardrailRule("logprob_difference_nats>-.1", "logprob_difference_nats", False, -0.1),
        ),
        ("itl_ms<50", GuardrailRule("itl_ms<50", "itl_ms", True, 50)),
        ("e2e_p95_ms<3000", GuardrailRule("e2e_p95_ms<3000", "e2e_ms", True, 3000, percentile=0.95)),
    ],
)
def test_what_can_be_said(text: str, parsed: GuardrailRule) -> None:
    assert parse_guardrail(text) == parsed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is QUANTITY<BOUND"),
        ("error_rate=1%", "it is QUANTITY<BOUND"),
        ("error_rate<=1%", "it is QUANTITY<BOUND"),
        ("error_rate<-1", "error_rate is never below 0"),
        ("ttft_p95_ms<-1", "ttft_p95_ms is never below 0"),
        ("error_rate<--1", "it is QUANTITY<BOUND"),
        ("error_rate<1%; drop", "it is QUANTITY<BOUND"),
        ("errors<1%", "errors is no quantity; there are error_rate, agreement, logprob"),
        ("error_rate<2", "error_rate is in 0..1"),
        ("error_rate<1", "it is never broken; for 1 % write 1%"),
        ("agreement>0%", "it is never broken"),
        ("agreement<.6", "it would drain the better arm; write agreement>.6"),
        ("ttft_ms>1.2x", "it would drain the better arm; write ttft_ms<1.2x"),
        ("e2e_p95_ms>300", "it would drain the better arm; write e2e_p95_ms<300"),
        ("error_rate>1%", "it would drain the better arm; write error_rate<1%"),
        ("agreement>101%", "agreement is in 0..1"),
        ("ttft_ms<5%", "% goes with shares only"),
        ("agreement<1.5x", "agreement already compares two arms"),
        ("logprob_difference_nats>-5%", "% goes with shares only"),
        ("ttft_p95_ms<1.2x", "a percentile is compared with a number"),
        ("ttft_ms<1.2", "no answer begins within 1.2 ms; a mean over the control's is ttft_ms<1.2x"),
        ("e2e_p95_ms<1.2", "no answer begins within 1.2 ms"),
        ("ttft_p30_ms<5", "ttft_p30_ms is no quantity"),
        ("itl_p95_ms<5", "itl_p95_ms is no quantity"),
    ],
)
def test_what_cannot_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_guardrail(text)
    assert said in str(refused.value)


@given(st.text(max_size=40) | st.from_regex(r"[a-z_0-9]{1,12}[<>=][0-9.]{1,6}[%x]?", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        rule = parse_guardrail(text)
    except UserError:
        return
    assert parse_guardrail(rule.text) == rule


def test_all_values_above_or_below() -> None:
    below, above = parse_guardrail("itl_ms<5"), parse_guardrail("tokens_per_s>5")
    assert below.verdict(all_above=True, all_below=False) == "broken"
    assert below.verdict(all_above=False, all_below=True) == "holds"
    assert above.verdict(all_above=True, all_below=False) == "holds"
    assert above.verdict(all_above=False, all_below=True) == "broken"
    assert above.verdict(all_above=False, all_below=False) == "undecided"
