"""The fast engine and the clients that the proxy's cost is measured with."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest

from bench.load.stream_client import load
from bench.studies.ab_cost import BODY, fast_engine, percentiles
from mi_prun.errors import UserError
from mi_prun.process_group import free_port


def test_an_engine_that_streams_so_many_tokens_and_clients_that_read_them(tmp_path: Path) -> None:
    with fast_engine(tmp_path, tokens=5, token_ms=1.0, aligned=False) as port:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", BODY)
        with urllib.request.urlopen(request, timeout=10) as answer:
            events = answer.read().decode().split("\n\n")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:5]]
        assert events[5:] == ["data: [DONE]", ""]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
        timings = asyncio.run(load(port, BODY, clients=3, seconds=0.3))
    assert timings.failed == 0
    assert len(timings.ttft_s) == len(timings.e2e_s) > 0
    assert all(0 < first <= whole for first, whole in zip(timings.ttft_s, timings.e2e_s, strict=True))


def test_answers_that_are_none_are_counted() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno")
        writer.close()

    async def run() -> None:
        port = free_port()
        async with await asyncio.start_server(refuse, "127.0.0.1", port):
            await load(port, BODY, clients=1, seconds=0.2)

    with pytest.raises(UserError, match=r"none of \d+ answers"):
        asyncio.run(run())


def test_percentiles_are_milliseconds() -> None:
    assert percentiles([value / 1e3 for value in range(101)]) == {"p50_ms": 50.0, "p99_ms": 99.0, "mean_ms": 50.0}
