"""How two answers are compared: by tokens, by words, and by what one arm thinks of the other's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from serve.ab.proxy.agreement import agreement, logprob_difference_nats, token_agreement
from serve.ab.proxy.completion_text import CompletionText, read_completion

PROMPT = "It was"


def letters(text: str) -> list[int]:
    return list(text.encode())


class FakeArm:
    """Its tokens are bytes; `scores` are what it says of a token at a place of the answer."""

    def __init__(self, *, tokenizer: bool = True, scores: list[float] | None = None) -> None:
        self.tokenizer = tokenizer
        self.scores = scores
        self.asked: list[tuple[str, Mapping[str, Any]]] = []

    async def __call__(self, path: str, body: Mapping[str, Any]) -> Any:
        self.asked.append((path, body))
        if path == "/tokenize":
            text = body.get("prompt") or "".join(turn["content"] for turn in body["messages"])
            return {"tokens": letters(text)} if self.tokenizer else None
        if self.scores is None:
            return None
        tokens = body["prompt"]
        places: list[Any] = [None] + [{str(token): {"logprob": -9.0}} for token in tokens[1:]]
        for place, value in enumerate(self.scores, len(letters(PROMPT))):
            places[place] = {str(tokens[place]): {"logprob": value, "decoded_token": chr(tokens[place])}}
        return {"choices": [{"prompt_logprobs": places}]}


def spoken(text: str, logprobs: list[float] | None = None) -> CompletionText:
    return CompletionText(text, list(text) if logprobs else [], logprobs or [])


@pytest.mark.parametrize(
    ("one", "other", "same", "compared"),
    [("abc", "abc", 3, 3), ("abc", "abd", 2, 3), ("ab", "abcd", 2, 4), ("", "ab", 0, 2), ("x", "y", 0, 1)],
)
def test_agreement_is_of_leading_tokens(one: str, other: str, same: int, compared: int) -> None:
    agreed = agreement(one, other)
    assert (agreed.same, agreed.compared) == (same, compared)
    assert agreed.share == same / compared


def test_two_empty_answers_agree() -> None:
    assert agreement("", "").share == 1.0


@pytest.mark.parametrize(
    ("arm", "logprobs", "same", "compared"),
    [(FakeArm(), [-1.0] * 6, 4, 6), (FakeArm(), None, 4, 6), (FakeArm(tokenizer=False), None, 1, 2)],
)
def test_by_tokens_where_they_can_be_had_else_by_words(
    arm: FakeArm, logprobs: list[float] | None, same: int, compared: int
) -> None:
    agreed = asyncio.run(token_agreement(spoken("he sat", logprobs), spoken("he sun", logprobs), arm))
    assert (agreed.same, agreed.compared) == (same, compared)
    assert bool(arm.asked) == (logprobs is None)


def difference(request: Mapping[str, Any], arm: FakeArm, primary: CompletionText, shadow: CompletionText) -> Any:
    return asyncio.run(logprob_difference_nats(request, primary, shadow, arm))


@pytest.mark.parametrize(
    "request_", [{"prompt": PROMPT}, {"prompt": letters(PROMPT)}, {"messages": [{"role": "user", "content": PROMPT}]}]
)
def test_the_shadow_scores_the_primarys_tokens(request_: dict[str, Any]) -> None:
    arm = FakeArm(scores=[-1.0, -2.0, -4.0])
    nats_and_tokens = difference(request_, arm, spoken("abc", [-0.5, -1.5, -2.0]), spoken("xyz", [-9.0] * 3))
    assert nats_and_tokens == (pytest.approx((-0.5 - 0.5 - 2.0) / 3), 3)


def test_the_token_that_ends_an_answer_is_not_in_its_text() -> None:
    primary = CompletionText("ab", ["a", "b", ""], [-1.0, -1.0, -7.0])
    nats_and_tokens = difference({"prompt": PROMPT}, FakeArm(scores=[-2.0, -2.0]), primary, spoken("ab", [-3.0, -3.0]))
    assert nats_and_tokens == (-1.0, 2)


def test_an_engine_that_cannot_score_is_compared_where_both_said_the_same() -> None:
    nats_and_tokens = difference(
        {"prompt": PROMPT}, FakeArm(), spoken("abc", [-1.0, -1.0, -1.0]), spoken("abx", [-2.0] * 3)
    )
    assert nats_and_tokens == (-1.0, 2)
    assert difference({"prompt": PROMPT}, FakeArm(), spoken("abc", [-1.0] * 3), spoken("xyz", [-2.0] * 3)) is None


@pytest.mark.parametrize("nats", ["-Infinity", "NaN", "1e999", "-1e300"])
@pytest.mark.parametrize("scores", [None, [-1.0, -1.0]])
def test_a_log_probability_that_is_none_makes_no_difference(nats: str, scores: list[float] | None) -> None:
    logprobs = f'{{"tokens": ["a", "b"], "token_logprobs": [-1, {nats}]}}'
    primary = read_completion(f'{{"choices": [{{"text": "ab", "logprobs": {logprobs}}}]}}'.encode(), streamed=False)
    assert difference({"prompt": PROMPT}, FakeArm(scores=scores), primary, spoken("ab", [-1.0, -1.0])) is None
    if scores:
        arm = FakeArm(scores=[-1.0, float(nats)])
        assert difference({"prompt": PROMPT}, arm, spoken("ab", [-1.0, -1.0]), spoken("ab", [-1.0, -1.0])) is None


def test_nothing_is_asked_where_no_log_probabilities_were() -> None:
    arm = FakeArm(scores=[-1.0])
    assert difference({"prompt": PROMPT}, arm, spoken("a"), spoken("a")) is None
    assert arm.asked == []


def test_tools_that_are_called_differently_are_another_answer() -> None:
    one, other = spoken('Wait. weather{"city": "Rome"}'), spoken('Wait. weather{"city": "Oslo"}')
    assert asyncio.run(token_agreement(one, other, FakeArm())).share < 1.0
