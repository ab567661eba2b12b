"""The proxied paths in the application's own OpenAPI document: what the proxy itself asks of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI

from serve.ab.proxy.parsed_request import PATHS

SUMMARIES = {
    "/v1/chat/completions": "Chat completion, streamed or whole, by the arm that the request is assigned to",
    "/v1/completions": "Completion, streamed or whole, by the arm that the request is assigned to",
    "/v1/responses": "OpenAI's newer kind of answer, streamed or whole, where all arms have it",
    "/v1/messages": "Anthropic's kind of answer, streamed or whole, where all arms have it",
    "/v1/messages/count_tokens": "How many tokens a prompt of Anthropic's kind has",
    "/v1/embeddings": "Embeddings, where the engine has them",
    "/tokenize": "Tokens of a text, as the assigned arm cuts it",
    "/detokenize": "The text of tokens",
}
REFUSALS = {
    "400": "The body is not what it must be",
    "401": "An API key is needed",
    "403": "Only the admin key may choose an arm",
    "404": "No such model, or a path that an arm lacks",
    "408": "The request took too long to come",
    "413": "The body is too large",
    "415": "The content type must be application/json, its encoding gzip, deflate or none",
    "422": "Refused by the engine",
    "500": "Failed in the engine",
    "502": "No arm answered",
    "503": "No engine is up, or too many requests at once",
    "504": "No arm answered in time",
}
ANY: dict[str, Any] = {}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "code": ANY},
        }
    },
}


ENGINES_OWN = {"application/json": {"schema": ANY}, "text/plain": {"schema": ANY}}
ALSO_OF_ENGINES = ("400", "404", "422", "500", "502", "503")


def describe_proxied(app: FastAPI, names: Sequence[str]) -> None:
    """Add the proxied paths to the document that FastAPI makes of its own routes."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        for path in PATHS:
            document["paths"].setdefault(path, {"post": _operation(path, names)})
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["key"] = {"type": "http", "scheme": "bearer", "description": "An API key, or the admin key"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(path: str, names: Sequence[str]) -> dict[str, Any]:
    body = {
        "type": "object",
        "description": "As the engine takes it; these fields are looked at by the proxy too.",
        "properties": {
            "model": {"type": ["string", "null"], "enum": [*names, None]},
            "stream": {"type": ["boolean", "null"]},
            "user": {"type": ["string", "null"], "description": "A sticky key, where no header gives one"},
        },
    }
    arm = {"schema": {"type": "string"}, "description": "The arm that answered"}
    reason = {"schema": {"type": "string"}, "description": "Why it was that one"}
    refusals = {
        status: {
            "description": said,
            "content": ENGINES_OWN if status in ALSO_OF_ENGINES else {"application/json": {"schema": ERROR}},
        }
        for status, said in REFUSALS.items()
    }
    answers = {"application/json": {"schema": ANY}, "text/event-stream": {"schema": ANY}}
    return {
        "summary": SUMMARIES[path],
        "operationId": path.strip("/").replace("/", "_"),
        "tags": ["proxied"],
        "security": [{"key": []}, {}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "The arm's answer, byte for byte",
                "headers": {"x-mi-prun-arm": arm, "x-mi-prun-reason": reason},
                "content": answers,
            },
            **refusals,
        },
    }
