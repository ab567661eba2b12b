"""An endpoint that is none, refuses, or gives no log-probabilities, is said in one line. A small real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bench.engines.endpoint import Endpoint, open_endpoint
from mi_prun.errors import UserError

MODELS = {"data": [{"id": "served", "root": "owner/model", "max_model_len": 512}]}
Answers = dict[str, tuple[int, Any]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], str]]:
    """`serve({path: (status, answer)})` gives the address of a server that answers so."""
    started: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = answers.get(self.path, (404, {}))
                body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def completion(logprobs: object) -> Answers:
    return {
        "/v1/models": (200, MODELS),
        "/v1/completions": (200, {"choices": [{"text": "x", "logprobs": logprobs}]}),
    }


def test_what_a_server_says_of_itself(serve: Callable[[Answers], str]) -> None:
    url = serve({"/v1/models": (200, MODELS)})
    assert open_endpoint(f"{url}/v1/") == Endpoint(url, "served", "owner/model", 512)
    assert open_endpoint(url).pruning() is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, "no json"), "did not answer as an OpenAI-compatible server does"),
        ((200, [1]), "did not answer with a JSON object"),
        ((200, {"data": []}), "names no model"),
        ((401, {"error": "key"}), r"answered 401 \(the key is taken from OPENAI_API_KEY\)"),
        ((500, {"error": "broken"}), "answered 500: .*broken"),
    ],
)
def test_what_is_no_such_server(serve: Callable[[Answers], str], answer: tuple[int, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_endpoint(serve({"/v1/models": answer}))


def test_addresses_that_are_none() -> None:
    with pytest.raises(UserError, match="is no address"):
        open_endpoint("localhost:8000")
    with pytest.raises(UserError, match="did not answer"):
        open_endpoint("http://127.0.0.1:9")


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"token_logprobs": None},
        {"token_logprobs": [-0.5]},  # of the answer alone: the prompt was not echoed
        {"token_logprobs": [None, None, None, -1.0]},
        {"token_logprobs": [None, "-1", -1.0, -1.0]},
    ],
)
def test_an_endpoint_without_prompt_log_probabilities_is_refused(
    serve: Callable[[Answers], str], logprobs: object
) -> None:
    endpoint = open_endpoint(serve(completion(logprobs)))
    with pytest.raises(UserError, match="does not return log-probabilities of a prompt"):
        endpoint.prompt_logprobs([5, 6, 7])


def test_log_probabilities_of_the_prompt_alone_are_taken(serve: Callable[[Answers], str]) -> None:
    endpoint = open_endpoint(serve(completion({"token_logprobs": [None, -1.0, -2.0, -9.0]})))
    assert endpoint.prompt_logprobs([5, 6, 7]) == [-1.0, -2.0]
