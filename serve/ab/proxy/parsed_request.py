"""A request's body, as far as the proxy reads it: which model, which arm, whether it streams, who it sticks to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
NOT_IN_EACH_ENGINE = (RESPONSES, MESSAGES)  # answered where all arms have them
GENERATIONS = (*COMPLETIONS, *NOT_IN_EACH_ENGINE)
PATHS = (*GENERATIONS, "/v1/messages/count_tokens", "/v1/embeddings", "/tokenize", "/detokenize")
HELD_BY_ONE_ARM = ("previous_response_id", "background")
LONGEST_NAME = 1024
# Lists and objects of a body take up to 200 bytes each, once read. A prompt of a million tokens of JSON has fewer.
MOST_BRACKETS = 2**18


class RefusalError(Exception):
    """A refusal that the proxy answers itself. message: for the client. code: for programs, or None."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code

    def body(self) -> bytes:
        """Return the refusal as OpenAI's API says it."""
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request. body: as it came; fields: the same, read.

    model: the name that was asked for, without an arm; None where there was none. arm: what `NAME@arm` asks for.
    """

    path: str
    body: bytes
    fields: Mapping[str, Any]
    model: str | None
    arm: str | None

    @property
    def streamed(self) -> bool:
        return self.fields.get("stream") is True

    @property
    def user(self) -> str | None:
        """Who asks on whose behalf; in Anthropic's words it is `metadata.user_id`."""
        user: str | None = self.fields.get("user")
        metadata = self.fields.get("metadata")
        if user is None and self.path == MESSAGES and isinstance(metadata, dict):
            said = metadata.get("user_id")
            return said if isinstance(said, str) else None
        return user

    @property
    def generation(self) -> bool:
        return self.path in GENERATIONS

    @property
    def comparable(self) -> bool:
        """Tell whether the answers of two arms can be compared, so that the request can be mirrored."""
        return self.path in COMPLETIONS

    def body_for(self, model: str | None) -> bytes:
        """Return the body with another model's name; as it came where that is the same, or None.

        Raises RefusalError where it cannot be written so.
        """
        if model is None or self.fields.get("model", model) == model:
            return self.body
        try:
            return json.dumps({**self.fields, "model": model}, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise RefusalError(400, f"the body cannot be written with another model's name: {error}") from error


def no_such_model(model: str, names: Sequence[str]) -> RefusalError:
    """Return the refusal of a model's name. names: those that may be asked for."""
    said = json.dumps(model if len(model) <= LONGEST_NAME else model[:LONGEST_NAME] + "...")
    return RefusalError(
        404, f"The model {said} does not exist; it is {' or '.join(names)}", "NotFoundError", "model_not_found"
    )


def parse_request(path: str, body: bytes, names: Sequence[str], arms: Mapping[str, object]) -> ParsedRequest:
    """Return the request that a body holds. names: the model's; arms: what `NAME@arm` may name. Raises RefusalError."""
    if body.count(b"[") + body.count(b"{") > MOST_BRACKETS:
        raise RefusalError(413, f"the body has more than {MOST_BRACKETS:,} [ and {{", code="body_limit")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RefusalError(400, "the body must be a JSON object")
    if not isinstance(fields.get("stream"), bool | None):
        raise RefusalError(400, "stream must be true or false")
    if not isinstance(fields.get("user"), str | None):
        raise RefusalError(400, "user must be a string")
    if path == RESPONSES and (held := next((name for name in HELD_BY_ONE_ARM if fields.get(name)), None)):
        raise RefusalError(
            400, f"{held} needs an answer that one arm holds; send the whole conversation as input", code="one_arm_only"
        )
    model = fields.get("model")
    if model is None or model in names:
        return ParsedRequest(path, body, fields, model, None)
    if not isinstance(model, str):
        raise RefusalError(400, "model must be a string")
    name, _, arm = model.rpartition("@")
    if name not in names or arm not in arms:
        raise no_such_model(model, names)
    return ParsedRequest(path, body, fields, name, arm)
