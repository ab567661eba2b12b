"""What is said of drafts: counters of the engine, one record each, the dense model alone first."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import draft
from bench.draft import DRAFTS_NAME, DraftRecord, acceptance_of, run_drafts
from bench.prompts import Rounds
from bench.record import BenchRecord, Load, Speed
from bench.run import RunSettings
from mi_prun.errors import UserError
from mi_prun.inspection import read_manifest

METRICS = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 100.0
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 300.0
# HELP vllm:spec_decode_num_accepted_tokens_total Number of accepted tokens.
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 150.0
# HELP vllm:spec_decode_num_accepted_tokens_per_pos_total Accepted tokens per draft position.
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 90.0
"""


def test_the_engines_counters() -> None:
    found = acceptance_of(METRICS)
    assert (found.drafts, found.drafted_tokens, found.accepted_tokens) == (100, 300, 150)
    assert found.rate == 0.5
    assert found.length == 2.5


def test_an_engine_that_drafted_nothing() -> None:
    with pytest.raises(UserError, match="drafted no token"):
        acceptance_of(METRICS.replace("300.0", "0.0"))


class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        tokens = {"draft": {"tokens": 4}}
        self.wfile.write(METRICS.encode() if self.path == "/metrics" else json.dumps(tokens).encode())

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, record: Callable[..., BenchRecord]) -> Iterator[list[list[str]]]:
    """In the place of engines: the flags that each would have had."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags_of: list[list[str]] = []

    @contextlib.contextmanager
    def running(model: str, flags: Sequence[str] = ()) -> Iterator[Any]:
        flags_of.append(list(flags))
        yield SimpleNamespace(base_url=f"http://127.0.0.1:{server.server_port}", startup_s=1.0)

    monkeypatch.setattr(draft, "running", running)

    def drive(engine: Any, model: str, load: Load, rounds: int, prompts: Rounds) -> Speed:
        assert [len(texts) for texts in prompts] == [load.warmups, *[load.prompts] * rounds]
        assert (load.dataset, load.temperature) == ("text.txt", 0.0)
        return record((1,) if "--draft" in flags_of[-1] else ()).speed

    monkeypatch.setattr(draft, "drive", drive)
    yield flags_of
    server.shutdown()


SETTINGS = RunSettings(input_tokens=8, output_tokens=8, prompts=4, serve_flags=("--enforce-eager",))


@pytest.fixture
def text(reference: Path, tmp_path: Path) -> str:
    """A file of some prompts' length."""
    path = tmp_path / "text.txt"
    path.write_text((reference.parents[1] / "LICENSE").read_text()[:2_000])
    return str(path)


def test_a_record_of_each(
    started: list[list[str]], reference: Path, prune: Callable[..., Path], text: str, tmp_path: Path
) -> None:
    pruned = prune(reference, tmp_path / "pruned", (1, 2, 5), virtual=True)
    plan = tmp_path / "plan.json"
    read_manifest(pruned).plan.write(plan)
    records = run_drafts(str(reference), [pruned, plan], tmp_path / "results", SETTINGS, text, 4)
    drafted = ["--enforce-eager", "--draft", str(pruned), "--draft-tokens", "4"]
    assert started == [["--enforce-eager"], drafted, [*drafted[:2], str(plan), *drafted[3:]]]
    lines = (tmp_path / "results" / DRAFTS_NAME).read_text().splitlines()
    assert [DraftRecord.model_validate_json(line) for line in lines] == records
    assert [found.blocks.dropped for found in records] == [(), (1, 2, 5), (1, 2, 5)]
    assert [found.draft_tokens for found in records] == [None, 4, 4]
    assert records[0].acceptance is None
    assert "dense alone" in records[0].line(records[0])
    assert "(1.12x)" in records[1].line(records[0])
    assert "4 drafted at a time, 50.0% accepted, 2.50 tokens a pass" in records[1].line(records[0])


def test_a_draft_of_another_model_starts_nothing(
    started: list[list[str]], dense: Path, other_dense: Path, prune: Callable[..., Path], text: str, tmp_path: Path
) -> None:
    other = prune(other_dense, tmp_path / "pruned", (1,))
    with pytest.raises(UserError, match="is another model"):
        run_drafts(str(dense), [other], tmp_path / "results", SETTINGS, text, None)
    assert started == []


def test_a_text_that_is_too_short_starts_nothing(
    started: list[list[str]], reference: Path, prune: Callable[..., Path], text: str, tmp_path: Path
) -> None:
    pruned = prune(reference, tmp_path / "pruned", (1,), virtual=True)
    settings = replace(SETTINGS, prompts=500)
    for given, said in ((text, r"gives \d+ prompts of 8 tokens, and 1504 are asked for"), ("self", "--text self")):
        with pytest.raises(UserError, match=said):
            run_drafts(str(reference), [pruned], tmp_path / "results", settings, given, None)
    assert started == []
    assert not (tmp_path / "results").exists()
