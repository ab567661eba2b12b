"""What goes wrong in service, done to real processes: what was tried, and what was lost."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mi_prun.process_group import free_port

HEALTH = "[health]\nprobe_s = 0.2\nprobe_timeout_s = {}\nfailures = 2\ncool_down_s = 0.5\n"
ERROR = b'data: {"error": {"message": "arm dense failed: '


async def ask(
    session: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None, **body: Any
) -> tuple[int, str, bytes]:
    """Status, reason and body; status 0 where the connection broke."""
    sent = {"model": "the-model", "prompt": "x", **body}
    try:
        async with session.post(f"{url}/v1/completions", json=sent, headers=headers) as answer:
            return answer.status, answer.headers.get("x-mi-prun-reason", ""), await answer.read()
    except aiohttp.ClientError:
        return 0, "", b""


def ask_many(
    url: str, count: int, meanwhile: Callable[[], None] | None = None, **body: Any
) -> list[tuple[int, str, bytes]]:
    """So many at the same time; `meanwhile` is done once all are on their way."""

    async def run() -> list[tuple[int, str, bytes]]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            asked = [asyncio.create_task(ask(session, url, **body)) for _ in range(count)]
            if meanwhile is not None:
                await asyncio.sleep(0)
                await asyncio.to_thread(meanwhile)
            return await asyncio.gather(*asked)

    return asyncio.run(run())


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def standing(fake_class: Any, proxy_class: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """dense and pruned, everything assigned to dense, and the proxy: for all tests here that do not end the proxy."""
    folder = tmp_path_factory.mktemp("faults")
    processes = {name: fake_class(folder / f"{name}.log", name, free_port()) for name in ("dense", "pruned")}
    for fake in processes.values():
        fake.wait_ready()
    (folder / "ab.toml").write_text(HEALTH.format(3))
    words = [word for fake in processes.values() for word in ("--arm", f"{fake.name}={fake.url}")]
    proxy = proxy_class(folder, *words, "--model-name", "the-model", "--config", str(folder / "ab.toml"))
    processes["proxy"] = proxy
    proxy.wait_ready()
    yield processes
    proxy.group.stop()
    processes["dense"].stop()
    processes["pruned"].stop()


@pytest.fixture
def pair(standing: dict[str, Any], fake_class: Any) -> Any:
    """dense (a new one in its place, at its port), pruned and the proxy, which finds both well."""
    old, proxy = standing["dense"], standing["proxy"]
    old.stop()
    standing["dense"] = fake_class(old.log, "dense", old.port)
    standing["dense"].wait_ready()
    wait_until(lambda: all(arm["available"] for arm in arms(proxy).values()))
    wait_until(lambda: ask_many(proxy.url, 1)[0][:2] == (200, "split"))
    return standing["dense"], standing["pruned"], proxy


def arms(proxy: Any) -> dict[str, Any]:
    return {arm["name"]: arm for arm in proxy.call("/health")[2]["arms"]}


def test_killed_idle_and_in_prefill(pair: Any) -> None:
    """Of 60 requests none is lost: no byte of an answer had come, so the drained arm of weight 0 answered instead."""
    dense, pruned, proxy = pair
    logged, asked, finished = len(proxy.lines()), dense.seen()["seen"], pruned.seen()["finished"]
    answers = ask_many(proxy.url, 20)
    assert Counter(answer[:2] for answer in answers) == {(200, "split"): 20}

    def kill_in_prefill() -> None:
        wait_until(lambda: dense.seen()["seen"] == asked + 40)
        dense.signal(signal.SIGKILL)

    answers = ask_many(proxy.url, 20, kill_in_prefill, fake={"prefill_s": 3}, stream=True)
    assert Counter(answer[:2] for answer in answers) == {(200, "failover"): 20}
    assert all(answer[2].endswith(b"data: [DONE]\n\n") for answer in answers)
    answers = ask_many(proxy.url, 20)  # dead and idle
    assert Counter(answer[:2] for answer in answers) == {(200, "failover"): 20}
    assert pruned.seen()["finished"] == finished + 40
    wait_until(lambda: not arms(proxy)["dense"]["available"])
    # A failover is logged as one, and in nobody's figures; the attempts that failed are in dense's.
    lines: list[Any] = []

    def all_logged() -> bool:
        lines[:] = proxy.lines()[logged:]
        return sum(line["reason"] == "failover" for line in lines) == 40

    wait_until(all_logged)
    assert all(line["counted"] == (line["arm"] == "dense") for line in lines)
    assert {line["outcome"] for line in lines if line["arm"] == "dense" and line["status"] == 0} == {"upstream_error"}


@pytest.mark.parametrize("fault", [{"die_after": 3}, {"cut": True}])
def test_killed_in_mid_stream(pair: Any, fault: dict[str, Any]) -> None:
    """Those that dense had begun to answer are lost, each with a well-formed error event; nothing else is."""
    dense, _, proxy = pair
    begun = 8
    answers = ask_many(proxy.url, begun, stream=True, fake={"tokens": 6, "token_s": 0.3, **fault})
    lost = [answer for answer in answers if ERROR in answer[2]]
    assert dense.group.process.wait(10) == -signal.SIGKILL
    assert all(status == 200 for status, _, _ in answers)
    for _, reason, body in lost:
        assert reason == "split"
        assert body.endswith(b"\n\n")
        events = [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\n\n") if line]
        assert [event["choices"][0]["index"] for event in events[:-1]] == [0] * (len(events) - 1)
        assert events[-1]["error"]["code"] == "arm_failed"
    assert lost
    # The engine died at the first one's third token: the others had begun too, or went elsewhere unharmed.
    assert all(
        answer[1] == "failover" and answer[2].endswith(b"[DONE]\n\n") for answer in answers if answer not in lost
    )
    assert all(answer[0] == 200 for answer in ask_many(proxy.url, 10))


def test_the_openai_client_sees_an_error(pair: Any) -> None:
    from openai import APIError, OpenAI

    client = OpenAI(base_url=f"{pair[2].url}/v1", api_key="x", max_retries=0)
    stream = client.completions.create(
        model="the-model", prompt="x", stream=True, extra_body={"fake": {"tokens": 6, "token_s": 0.1, "die_after": 3}}
    )
    said = []
    with pytest.raises(APIError, match="arm dense failed"):
        said.extend(chunk.choices[0].text for chunk in stream)
    assert len(said) == 3


def test_an_answer_that_is_no_stream_is_cut_off_visibly(pair: Any) -> None:
    connection = http.client.HTTPConnection(pair[2].url.removeprefix("http://"), timeout=30)
    body = json.dumps({"model": "the-model", "prompt": "x", "fake": {"cut": True}})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    with pytest.raises(http.client.IncompleteRead):
        connection.getresponse().read()


def test_a_hung_engine_is_left_and_comes_back(
    start_fakes: Callable[..., list[Any]], start_proxy: Callable[..., Any], tmp_path: Path
) -> None:
    """Before a proxy of its own, which soon tells that an engine does not answer."""
    (tmp_path / "ab.toml").write_text(HEALTH.format(1))
    fakes = start_fakes("dense", "pruned")
    dense, proxy = fakes[0], start_proxy(fakes, "--config", str(tmp_path / "ab.toml"))
    wait_until(lambda: all(arm["available"] for arm in arms(proxy).values()))
    dense.set(prefill_s=10)
    asked = dense.seen()["seen"]

    def stop() -> None:
        wait_until(lambda: dense.seen()["seen"] == asked + 10)
        dense.signal(signal.SIGSTOP)

    answers = ask_many(proxy.url, 10, stop)
    assert Counter(answer[:2] for answer in answers) == {(200, "failover"): 10}
    assert not arms(proxy)["dense"]["healthy"]
    assert Counter(answer[:2] for answer in ask_many(proxy.url, 5)) == {(200, "failover"): 5}
    dense.signal(signal.SIGCONT)
    dense.set()
    wait_until(lambda: arms(proxy)["dense"]["available"])
    wait_until(lambda: ask_many(proxy.url, 1)[0][:2] == (200, "split"))


def test_a_full_disk_costs_log_lines_and_nothing_else(shared_fakes: list[Any], start_proxy: Callable[..., Any]) -> None:
    proxy = start_proxy(shared_fakes, "--access-log", "/dev/full")
    assert Counter(answer[0] for answer in ask_many(proxy.url, 50)) == {200: 50}
    wait_until(lambda: lines_lost(proxy) > 0)
    assert Counter(answer[0] for answer in ask_many(proxy.url, 50)) == {200: 50}
    assert proxy.experiment(weights={"dense": 2.0})["state"]["version"] == 2


def lines_lost(proxy: Any) -> float:
    with urllib.request.urlopen(f"{proxy.url}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return sum(sample.value for family in families for sample in family.samples if "lines_lost" in sample.name)


def test_200_streaming_clients(proxy: Any) -> None:
    """For 6 s without an error (`bench.studies.ab_cost soak`: for 60); nothing is kept of an answer that was served."""
    process = psutil.Process(proxy.group.process.pid)
    wrong: list[Any] = []
    rss: list[tuple[int, int]] = []  # answers so far, bytes
    served = 0

    async def client(session: aiohttp.ClientSession, end: float) -> None:
        nonlocal served
        while time.monotonic() < end or served < 400:
            status, _, body = await ask(
                session, proxy.url, stream=True, fake={"tokens": 10, "token_s": 0.05, "pad": 1800}
            )
            served += 1
            if status != 200 or body.count(b"\n\n") != 11 or not body.endswith(b"data: [DONE]\n\n"):
                wrong.append((status, body[-200:]))

    async def run() -> None:
        end = time.monotonic() + 6
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            clients = [asyncio.create_task(client(session, end)) for _ in range(200)]
            while time.monotonic() < end or served < 400:
                await asyncio.sleep(1)
                rss.append((served, process.memory_info().rss))
            await asyncio.gather(*clients)

    asyncio.run(run())
    assert wrong == []
    assert served >= 400
    (half_served, half), (end_served, end) = rss[len(rss) // 2], rss[-1]
    tenth = 2_000  # of an answer's own bytes; the allocator's noise is up to 3 MB
    assert end - half < max(3e6, tenth * (end_served - half_served))
    assert 10 * tenth * (end_served - half_served) > 3e6  # so answers that were kept would be seen


def test_sigterm_lets_what_is_in_flight_end(shared_fakes: list[Any], start_proxy: Callable[..., Any]) -> None:
    proxy = start_proxy(shared_fakes)
    asked = asked_of(shared_fakes)

    def terminate() -> None:
        wait_until(lambda: asked_of(shared_fakes) == asked + 10)
        proxy.group.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(proxy.port))

    answers = ask_many(proxy.url, 10, terminate, stream=True, fake={"tokens": 6, "token_s": 0.4})
    assert all(answer[2].endswith(b"data: [DONE]\n\n") for answer in answers)
    assert proxy.group.process.wait(20) == 128 + signal.SIGTERM


def test_sigterm_waits_no_longer_than_it_was_told(shared_fakes: list[Any], start_proxy: Callable[..., Any]) -> None:
    proxy = start_proxy(shared_fakes, "--drain-seconds", "1")
    asked = asked_of(shared_fakes)

    def terminate() -> None:
        wait_until(lambda: asked_of(shared_fakes) == asked + 4)
        proxy.group.process.send_signal(signal.SIGTERM)

    answers = ask_many(proxy.url, 4, terminate, stream=True, fake={"tokens": 1000, "token_s": 0.2})
    assert all(ERROR + b"the server is shutting down" in answer[2] for answer in answers)
    assert proxy.group.process.wait(20) == 128 + signal.SIGTERM
    assert "Traceback" not in proxy.log.read_text()


def asked_of(fakes: list[Any]) -> int:
    return sum(int(fake.seen()["seen"]) for fake in fakes)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
