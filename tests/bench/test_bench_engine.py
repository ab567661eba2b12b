"""The bench on the real engine and the bundled model: figures, report, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.draft import DRAFTS_NAME, DraftRecord
from bench.record import read_records

REFERENCE = Path(__file__).parents[2] / "bench" / "reference"
SERVE_FLAGS = "--enforce-eager --max-model-len 256 --max-num-seqs 4"
QUICK = ["--input-tokens", "16", "--output-tokens", "8", "--prompts", "4", "--concurrency", "2", "--rounds", "2"]
MARK = "MI_PRUN_BENCH_TEST"

pytestmark = pytest.mark.engine


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "bench.cli", *map(str, words)]


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that inherited this test's environment, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", MARK: uuid.uuid4().hex}


def test_dense_and_pruned_are_measured_and_reported(
    tmp_path: Path, prune: Callable[..., Path], environment: dict[str, str]
) -> None:
    pruned, results = prune(REFERENCE, tmp_path / "p25", [2, 3, 7]), tmp_path / "results"
    words = ["run", "--dense", REFERENCE, "--pruned", pruned, "-o", results, *QUICK, f"--serve-flags={SERVE_FLAGS}"]
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert marked(environment[MARK]) == []

    dense, without = read_records(results)
    assert (dense.arm, without.arm) == ("dense", "pruned")
    assert dense.run == without.run
    assert without.blocks.dropped == (2, 3, 7)
    assert without.memory.weight_bytes < dense.memory.weight_bytes == 2 * 9_312_512
    assert without.memory.kv_tokens / dense.memory.kv_tokens == pytest.approx(12 / 9, rel=0.02)
    for record in (dense, without):
        assert record.speed.completed == 2 * 4
        assert record.speed.rounds == 2
        assert record.speed.output_tokens_per_s > 0
        assert 0 < record.speed.ttft.p50_ms <= record.speed.e2e.p99_ms
        assert record.memory.peak_rss_bytes > 500_000_000
        assert any(name.startswith("vllm") for name in record.versions)
    last = json.loads(done.stdout.splitlines()[-1])
    assert [row["block_ratio"] for row in last["models"]] == [0, 0.25]

    report = subprocess.run(command("report", results), env=environment, capture_output=True, text=True, check=False)
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout.splitlines()[-1])["report"][0] == str(results / "report.html")
    assert "25% of blocks gone" in (results / "report.md").read_text()


def test_a_draft_is_measured_beside_the_dense_model(
    tmp_path: Path, prune: Callable[..., Path], environment: dict[str, str]
) -> None:
    draft, results = prune(REFERENCE, tmp_path / "draft", [3, 7], virtual=True), tmp_path / "results"
    text = REFERENCE.parents[1] / "LICENSE"
    (tmp_path / "text.txt").write_text(text.read_text())
    words = ["draft", "--dense", REFERENCE, draft, "--text", tmp_path / "text.txt", "-o", results, *QUICK]
    words += ["--draft-tokens", "2", f"--serve-flags={SERVE_FLAGS}"]
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert marked(environment[MARK]) == []
    alone, drafted = map(DraftRecord.model_validate_json, (results / DRAFTS_NAME).read_text().splitlines())
    assert alone.acceptance is None
    assert alone.speed.completed == drafted.speed.completed == 2 * 4
    assert drafted.draft_tokens == 2
    assert drafted.acceptance is not None
    # After its first token a request of 8 takes 7 passes at most, each of 1 to 3 tokens.
    requests = 4 + 2 * 4  # the warm-up too
    assert 2 * requests <= drafted.acceptance.drafts <= 7 * requests
    assert 0 < drafted.acceptance.accepted_tokens < drafted.acceptance.drafted_tokens
    assert "2 drafted at a time" in done.stdout


def test_an_engine_that_does_not_start_says_why(
    tmp_path: Path, prune: Callable[..., Path], environment: dict[str, str]
) -> None:
    pruned, results = prune(REFERENCE, tmp_path / "p", [2]), tmp_path / "results"
    words = ["run", "--dense", REFERENCE, "--pruned", pruned, "-o", results, *QUICK, "--serve-flags=--no-such-flag"]
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the engine for ")
    assert "--no-such-flag" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert marked(environment[MARK]) == []
    assert list(results.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(
    tmp_path: Path, prune: Callable[..., Path], environment: dict[str, str], signum: signal.Signals
) -> None:
    pruned, results = prune(REFERENCE, tmp_path / "p", [2]), tmp_path / "results"
    words = ["run", "--dense", REFERENCE, "--pruned", pruned, "-o", results, *QUICK, f"--serve-flags={SERVE_FLAGS}"]
    run = subprocess.Popen(command(*words), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(marked(environment[MARK])) < 3 and time.monotonic() < deadline:  # bench, server, engine core or tracker
        time.sleep(0.3)
    assert len(marked(environment[MARK])) >= 3
    run.send_signal(signum)
    assert run.wait(60) == 128 + signum
    assert marked(environment[MARK]) == []
