"""Ask an OpenAI-compatible completions endpoint, as a user's client does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from mi_prun.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"  # lm-eval reads the same
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that serves one model.

    url: without /v1. model: as the server calls it. root: the folder or hub id that the server says it was loaded from.
    context_tokens: prompt and answer together; None where the server does not say.
    """

    url: str
    model: str
    root: str
    context_tokens: int | None

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a body to a path, and return the answer's JSON object. Raises UserError for any other answer."""
        return _request("POST", f"{self.url}{path}", body)

    def pruning(self) -> dict[str, Any] | None:
        """Return what `mi-prun-serve` says of the model at GET /v1/pruning; None for another server."""
        try:
            return _request("GET", f"{self.url}/v1/pruning")
        except UserError:
            return None

    def prompt_logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Return the log-probabilities, in nats, of a prompt's tokens but the first.

        Raises UserError where the endpoint does not give them. Without them lm-eval cannot score a choice.
        """
        body = {
            "model": self.model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "echo": True,
        }
        answer = self.ask("/v1/completions", body)
        try:
            logprobs = answer["choices"][0]["logprobs"]["token_logprobs"][1 : len(tokens)]
        except (KeyError, IndexError, TypeError):
            logprobs = []
        if len(logprobs) != len(tokens) - 1 or not all(isinstance(value, float | int) for value in logprobs):
            raise UserError(
                f"{self.url} does not return log-probabilities of a prompt (`echo` and `logprobs` of /v1/completions); "
                "tasks cannot be scored there"
            )
        return [float(value) for value in logprobs]

    def complete(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> str:
        """Return the text that continues a prompt. Raises UserError for an answer without one."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        answer = self.ask("/v1/completions", body)
        try:
            return str(answer["choices"][0]["text"])
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self.url} answered without a completion: {str(answer)[:200]}") from error


def open_endpoint(url: str) -> Endpoint:
    """Return the endpoint of the first model that a server names. Raises UserError for what is no such server."""
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise UserError(f"--url {url!r} is no address; write it like http://127.0.0.1:8000")
    answer = _request("GET", f"{base}/v1/models")
    try:
        first = answer["data"][0]
        name = str(first["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{base}/v1/models names no model; it is no OpenAI-compatible server") from error
    context = first.get("max_model_len")
    return Endpoint(base, name, str(first.get("root") or name), context if isinstance(context, int) else None)


def _request(method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.request(method, url, json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
        parsed = answer.json()
    except httpx.HTTPStatusError as error:
        hint = f" (the key is taken from {KEY_VARIABLE})" if error.response.status_code == 401 else ""
        raise UserError(f"{url} answered {error.response.status_code}{hint}: {error.response.text[:300]}") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UserError(f"{url} did not answer as an OpenAI-compatible server does: {error}") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{url} did not answer with a JSON object")
    return parsed
