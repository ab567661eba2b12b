"""A fast fake of an OpenAI-compatible engine, as a process of its own: `python fake_engine.py --port N --name dense`.

What it does with a request is said by the body's field `fake`: {"tokens": 8, "prefill_s": 0, "token_s": 0, "text":
["a", "b"], "status": 500, "die_after": 3, "cut": true, "hang_after": 3, "pad": 0}. Its words are its own, so that two
engines answer alike unless `--seed` differs. `GET /fake/seen` says what it was asked; `POST /fake/set` sets defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ("the", " old", " man", " opened", " a", " door", " and", " saw", " her", " face")


class Engine:
    def __init__(self, name: str, seed: int, key: str | None) -> None:
        self.name = name
        self.seed = seed
        self.key = key
        self.seen = 0
        self.finished = 0
        self.cancelled = 0
        self.last: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}

    async def health(self, request: Request) -> Response:
        return Response(status_code=int(self.defaults.get("health", 200)))

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.name, "object": "model", "max_model_len": 256}]})

    async def pruning(self, request: Request) -> Response:
        """Of `mi-prun-serve` only: there where a default tells what to say."""
        said = self.defaults.get("pruning")
        return JSONResponse(said or {"detail": "Not Found"}, 200 if said else 404)

    async def metrics(self, request: Request) -> Response:
        pad = "x" * int(self.defaults.get("metrics_pad", 0))
        said = f'vllm:request_success_total{{model_name="{self.name}"}} {self.finished}\n'
        return PlainTextResponse(said + f"# {pad}\n" * bool(pad))

    async def said(self, request: Request) -> Response:
        return JSONResponse(
            {"pid": os.getpid(), "seen": self.seen, "finished": self.finished, "cancelled": self.cancelled,
             "last": self.last}
        )  # fmt: skip

    async def set(self, request: Request) -> Response:
        self.defaults = await request.json()
        return JSONResponse(self.defaults)

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        text = body.get("prompt") or "".join(str(turn.get("content")) for turn in body.get("messages", []))
        return JSONResponse({"tokens": list(text.encode()), "count": len(text.encode()), "max_model_len": 256})

    async def detokenize(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse({"prompt": bytes(body.get("tokens") or []).decode(errors="replace")})

    async def embeddings(self, request: Request) -> Response:
        if status := self.defaults.get("embeddings"):
            return JSONResponse({"detail": "as told"}, status)
        return JSONResponse({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]})

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        self.seen += 1
        self.last = {"body": body, "headers": dict(request.headers)}
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no key", "type": "x", "code": 401}}, 401)
        fake = {**self.defaults, **(body.get("fake") or {})}
        if status := fake.get("status"):
            return JSONResponse({"error": {"message": "as told", "type": "fake", "code": status}}, status)
        if fake.get("redirect"):
            return Response(status_code=307, headers={"location": fake["redirect"]})
        chat = request.url.path.endswith("chat/completions")
        count = int(fake.get("tokens", body.get("max_tokens") or 8))
        tokens = fake.get("text") or [WORDS[(self.seed + place) % len(WORDS)] for place in range(count)]
        pad = "x" * int(fake.get("pad", 0))
        maker = Maker(body, chat, self.name, tokens, pad)
        if body.get("stream"):
            return StreamingResponse(self.stream(maker, fake), media_type="text/event-stream")
        try:
            await asyncio.sleep(float(fake.get("prefill_s", 0)) + len(tokens) * float(fake.get("token_s", 0)))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        if fake.get("cut"):
            whole = json.dumps(maker.whole()).encode()
            return StreamingResponse(cut_off(whole), headers={"content-length": str(len(whole))})
        return JSONResponse(maker.whole(), headers={"x-engine": self.name})

    async def stream(self, maker: Maker, fake: dict[str, Any]) -> AsyncIterator[bytes]:
        ended = False
        try:
            await asyncio.sleep(float(fake.get("prefill_s", 0)))
            pace = float(fake.get("token_s", 0))
            for place in range(len(maker.tokens)):
                if fake.get("die_after") == place:
                    os.kill(os.getpid(), signal.SIGKILL)
                if fake.get("hang_after") == place:
                    os.kill(os.getpid(), signal.SIGSTOP)
                event = maker.event(place)
                if fake.get("say_error") == place:
                    event = b'data: {"error":{"message":"engine dead","type":"x","code":500}}\n\n'
                if fake.get("cut") and place == len(maker.tokens) - 1:
                    yield event[: len(event) // 2]
                    await asyncio.sleep(0.05)
                    os.kill(os.getpid(), signal.SIGKILL)
                if fake.get("split"):
                    yield event[:9]
                    await asyncio.sleep(0.001)
                    event = event[9:]
                yield event
                await asyncio.sleep(pace)
            if (maker.body.get("stream_options") or {}).get("include_usage"):
                yield maker.usage_event()
            yield b"data: [DONE]\n\n"
            ended = True
            await asyncio.sleep(float(fake.get("end_s", 0)))
        finally:
            self.finished += ended
            self.cancelled += not ended


async def cut_off(whole: bytes) -> AsyncIterator[bytes]:
    yield whole[: len(whole) // 2]
    await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


class Maker:
    """Answers in the shape of vLLM's."""

    def __init__(self, body: dict[str, Any], chat: bool, name: str, tokens: list[str], pad: str) -> None:
        self.body = body
        self.chat = chat
        self.tokens = tokens
        self.pad = pad
        self.head = {"id": "cmpl-1", "created": 1, "model": body.get("model", name)}

    def event(self, place: int) -> bytes:
        token = self.tokens[place]
        finish = "stop" if place == len(self.tokens) - 1 else None
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": self.logprobs([place])}
        if self.chat:
            kind = "chat.completion.chunk"
            choice["delta"] = {"content": token + self.pad, **({"role": "assistant"} if place == 0 else {})}
        else:
            kind = "text_completion"
            choice["text"] = token + self.pad
        return b"data: " + json.dumps({**self.head, "object": kind, "choices": [choice]}).encode() + b"\n\n"

    def usage_event(self) -> bytes:
        return b"data: " + json.dumps({**self.head, "choices": [], "usage": self.usage()}).encode() + b"\n\n"

    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": 3, "completion_tokens": len(self.tokens), "total_tokens": 3 + len(self.tokens)}

    def whole(self) -> dict[str, Any]:
        text = "".join(token + self.pad for token in self.tokens)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": self.logprobs(list(range(len(self.tokens)))),
        }
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": [choice], "usage": self.usage()}

    def logprobs(self, places: list[int]) -> dict[str, Any] | None:
        if self.body.get("logprobs") in (None, False):
            return None
        tokens = [self.tokens[place] for place in places]
        values = [-0.5 - 0.25 * place for place in places]
        if self.chat:
            return {
                "content": [
                    {"token": token, "logprob": value, "bytes": list(token.encode()), "top_logprobs": []}
                    for token, value in zip(tokens, values, strict=True)
                ]
            }
        return {"tokens": tokens, "token_logprobs": values, "text_offset": [0] * len(tokens), "top_logprobs": None}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="fake")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", default=os.environ.get("VLLM_API_KEY"))
    parser.add_argument("--die", help="say so and end with a status")
    arguments, _ = parser.parse_known_args()
    if arguments.die:
        raise SystemExit("told to die")
    engine = Engine(arguments.name, arguments.seed, arguments.key)
    generations = [
        Route(path, engine.generate, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/completions")
    ]
    app = Starlette(
        routes=[
            *generations,
            Route("/health", engine.health),
            Route("/metrics", engine.metrics),
            Route("/v1/models", engine.models),
            Route("/v1/pruning", engine.pruning),
            Route("/v1/embeddings", engine.embeddings, methods=["POST"]),
            Route("/tokenize", engine.tokenize, methods=["POST"]),
            Route("/detokenize", engine.detokenize, methods=["POST"]),
            Route("/fake/seen", engine.said),
            Route("/fake/set", engine.set, methods=["POST"]),
        ]
    )
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
