"""The KV cache's size as the engine's /metrics tells it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.engines import engine
from bench.engines.engine import EngineProcess, kv_tokens, named, running
from mi_prun.errors import UserError
from mi_prun.process_group import free_port

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0"}} 0.0
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="128",engine="0"{labels}}} 1.0
"""


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        (',kv_cache_size_tokens="349440",num_gpu_blocks="2730"', 349_440),
        (',num_gpu_blocks="10"', 1_280),  # releases before the token count was told
        (',kv_cache_size_tokens="None",num_gpu_blocks="10"', 1_280),
    ],
)
def test_tokens_of_the_kv_cache(labels: str, tokens: int) -> None:
    assert kv_tokens(PAGE.format(labels=labels)) == tokens


@pytest.mark.parametrize("page", ["", PAGE.format(labels=',num_gpu_blocks="None"')])
def test_an_engine_that_does_not_say(page: str) -> None:
    with pytest.raises(UserError, match="does not say how large its KV cache is"):
        kv_tokens(page)


def test_an_engine_that_does_not_answer_any_more_is_quoted() -> None:
    group: Any = SimpleNamespace(last_lines=lambda: "RuntimeError: out of memory")
    result = EngineProcess("m", "t", f"http://127.0.0.1:{free_port()}", 1.0, None, None, group)
    said = r"the engine of m does not answer at /metrics \(.*refused.*\): RuntimeError: out of memory"
    for asked in (result.metrics, result.kv_tokens):
        with pytest.raises(UserError, match=said):
            asked()


class Port:
    """Stands for a server that finds its port taken `times` times: the moment between choosing and binding one."""

    def __init__(self, times: int, said: str = "error: cannot listen on 127.0.0.1:1: Address already in use") -> None:
        self.times, self.said, self.started, self.stopped = times, said, 0, 0

    def __call__(self, command: list[str], log: Path) -> Port:
        log.write_text(
            "INFO Loading weights took 0.5 seconds\nINFO Model loading took 1.5 GiB memory and 2.0 seconds\n"
        )
        self.started += 1
        return self

    def wait_ready(self, url: str, timeout_seconds: float) -> float:
        if self.started <= self.times:
            raise UserError(f"python ended with status 2: {self.said}")
        return 12.0

    def stop(self) -> None:
        self.stopped += 1

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def test_a_port_that_is_taken_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Port(times=2)
    monkeypatch.setattr(engine, "ProcessGroup", server)
    with running("m", ["--tokenizer", "t"]) as result:
        assert server.started == 3
        assert (result.startup_s, result.load_s, result.weight_bytes) == (12.0, 0.5, 3 * 2**29)
        assert (result.model, result.tokenizer) == ("m", "t")
    assert server.stopped >= 3


@pytest.mark.parametrize(("server", "starts"), [(Port(9), 3), (Port(9, "RuntimeError: no such kernel"), 1)])
def test_an_engine_that_does_not_start_is_quoted(monkeypatch: pytest.MonkeyPatch, server: Port, starts: int) -> None:
    monkeypatch.setattr(engine, "ProcessGroup", server)
    with pytest.raises(UserError, match=f"the engine for m did not start: .*{server.said[-10:]}"), running("m"):
        pass
    assert server.started == starts


def test_a_commit_is_named_as_vllm_takes_it(tmp_path: Path) -> None:
    """`mi-prun-serve` takes it behind an @ with a plan or a draft alone."""
    model = f"owner/name@{'a' * 40}"
    assert named(model, ()) == ["--model", "owner/name", "--revision", "a" * 40, "--served-model-name", model]
    assert named(model, ("--draft=plan.json",)) == named(model, ("--plan", "p")) == ["--model", model]
    assert named("owner/name", ()) == ["--model", "owner/name"]
    (tmp_path / "a@b").mkdir()
    assert named(str(tmp_path / "a@b"), ()) == ["--model", str(tmp_path / "a@b")]
