"""The bench on the real engine and the bundled model: figures, report, and nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.records.schema import POINTS_NAME, ROUNDS_NAME, RoundRecord, read_lines, read_points
from mi_prun.process_group import alive

REFERENCE = Path(__file__).parents[2] / "bench" / "reference"
SERVE_FLAGS = "--enforce-eager --max-model-len 256 --max-num-seqs 4"
QUICK = ["--input-tokens", "16", "--output-tokens", "8", "--prompts", "4", "--concurrency", "2", "--rounds", "2"]
MARK = "MI_PRUN_BENCH_TEST"
KNOWN: dict[str, set[psutil.Process]] = {}

pytestmark = pytest.mark.engine


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "bench.cli", *map(str, words)]


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that inherited this test's environment, whoever their parent is by now, and their children: an
    engine core's title takes the place of its environment. Those that were seen once are known for good.
    """
    known = KNOWN.setdefault(mark, set())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                known |= {process, *process.children(recursive=True)}
    return [process for process in known if alive(process)]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", MARK: uuid.uuid4().hex}


@pytest.mark.long
def test_a_sweep_with_drafts_goes_on_after_a_kill(
    tmp_path: Path, environment: dict[str, str], engine_cores: Callable[..., list[psutil.Process]]
) -> None:
    """Written checkpoints, quality by the plan, and the dense model drafted by the pruned one."""
    text, results = tmp_path / "text.txt", tmp_path / "results"
    text.write_text((REFERENCE.parents[1] / "LICENSE").read_text())
    words = ["sweep", "--dense", REFERENCE, "--ratios", "0,.25", "--methods", "bi:0", "--calibration", text]
    words += ["--tokens", "512", "--text", text, "--no-virtual", "--draft", "--engines", "together", *QUICK]
    words += ["--rates", "none", "-o", results, f"--serve-flags={SERVE_FLAGS}"]

    plan = subprocess.run(
        command(*words, "--dry-run"), env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert plan.returncode == 0, plan.stderr
    assert "3 models, 1 loads, 2 rounds, engines together" in plan.stdout.splitlines()[0]
    assert not results.exists()

    killed = subprocess.Popen(command(*words), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: bool(engine_cores(marked(environment[MARK]))) or killed.poll() is not None, 400)
        until(lambda: b"\n" in written(results / ROUNDS_NAME) or killed.poll() is not None, 400)
        assert killed.poll() is None
    finally:
        killed.kill()
        killed.wait()
    until(lambda: not marked(environment[MARK]), 90)  # its engines end with it
    before = {path: path.stat().st_mtime_ns for path in results.glob("*/**/*")}
    killed_rounds = read_lines(results, ROUNDS_NAME, RoundRecord)  # one, or a little more
    alone = killed_rounds[0]
    assert alone.arm == "dense"

    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert marked(environment[MARK]) == []
    assert f"going on with run {alone.run}" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in results.glob("*/**/*")} == before  # nothing was made twice
    recorded = read_lines(results, ROUNDS_NAME, RoundRecord)
    assert recorded[: len(killed_rounds)] == killed_rounds
    others = recorded[len(killed_rounds) :]
    # Two rounds of three models, in one process: no round is a pair of the one before the kill. The second is reversed.
    assert len({record.session for record in others}) == 1
    assert [(record.number, record.arm) for record in others] == [
        *((0, label) for label in ("dense", "bi 25.0%", "draft bi 25.0%")),
        *((1, label) for label in ("draft bi 25.0%", "bi 25.0%", "dense")),
    ]

    dense, without, drafted = read_points(results)
    assert (dense.arm.kind, without.arm.kind, drafted.arm.kind) == ("dense", "pruned", "draft")
    assert {point.run for point in (dense, without, drafted)} == {alone.run}
    assert without.arm.weights == "materialized"
    assert len(without.arm.blocks.dropped) == 3
    assert without.memory.weight_bytes < dense.memory.weight_bytes == 2 * 9_312_512
    assert without.memory.kv_tokens / dense.memory.kv_tokens == pytest.approx(12 / 9, rel=0.02)
    for point in (dense, without, drafted):
        assert point.speed.completed == 2 * 4
        assert len(point.speed.rounds) == 2
        assert point.speed.output_tokens_per_s > 0
        assert 0 < point.speed.ttft.p50_ms <= point.speed.ttft.p90_ms <= point.speed.ttft.p99_ms
        assert point.speed.ttft.p50_ms <= point.speed.e2e.p99_ms
        assert point.memory.peak_rss_bytes > 500_000_000
        assert point.memory.peak_device_bytes is None
        assert point.start_up.load_s is not None
        assert 0 < point.start_up.load_s < point.start_up.startup_s
        assert any(name.startswith("vllm") for name in point.provenance.versions)
        assert point.provenance.sweep["calibration"] == "text.txt"
    assert without.paired is not None
    assert without.paired.output_tokens_per_s.pairs == 2
    assert without.bound is not None
    assert 1 < without.bound < 12 / 9
    assert without.quality is not None
    assert without.quality.pruned_perplexity > without.quality.dense_perplexity
    assert without.selection == drafted.selection
    # Of a request's 8 tokens at least 7 come from passes of 1 to 4 tokens; warm-ups are not counted.
    assert drafted.acceptance is not None
    assert 2 * 2 * 4 <= drafted.acceptance.drafts <= 7 * 2 * 4
    assert 0 < drafted.acceptance.accepted_tokens < drafted.acceptance.drafted_tokens
    assert json.loads(done.stdout.splitlines()[-1]) == {"run": dense.run, "points": 3}


def written(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert true()


@pytest.mark.long
def test_a_shape_is_swept_and_a_finished_sweep_is_not_measured_again(
    tmp_path: Path, small: dict[str, Any], environment: dict[str, str]
) -> None:
    """Dummy weights on the real engine, closed and open loops, a trace; vLLM's CPU attention wants heads of 32."""
    fields = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config, trace, results = tmp_path / "tiny.json", tmp_path / "trace.csv", tmp_path / "results"
    config.write_text(json.dumps(small | fields | {"vocab_size": 300, "eos_token_id": 0}))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,30,4\n1,8,8\n")
    words = ["sweep", "--shape", config, "--ratios", "0,.34", "-o", results, *QUICK, "--concurrency", "1"]
    words += ["--rates", "20", "--trace", trace, "--engines", "together", "--serve-flags=--enforce-eager"]
    words += ["--prompts", "16", "--rounds", "1"]  # of fewer prompts nobody can tell whether they pile up
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert marked(environment[MARK]) == []
    points = read_points(results)
    labels = [f"{preset}, {how}" for how in ("1 in flight", "20 requests/s") for preset in ("custom", "trace")]
    assert sorted({point.load.label for point in points}) == sorted(labels)
    assert len(points) == 2 * len(labels)
    for point in points:
        assert point.speed.completed == 16
        assert (point.speed.backlog_growth is None) == (point.load.rate_per_s is None)
        assert point.dense.shape == "tiny"
        assert point.quality is None
        assert point.arm.blocks.dropped == ((1, 4) if point.arm.kind == "pruned" else ())
    one = next(p for p in points if p.load.label == labels[0] and p.arm.kind == "pruned")
    assert [roof.phase for roof in one.roofline] == ["prefill", "decode"]
    assert one.memory.weight_bytes < points[0].memory.weight_bytes

    before = (results / POINTS_NAME).read_bytes()
    again = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on with run" in again.stderr
    assert "starting" not in again.stderr
    assert again.stdout == done.stdout
    assert (results / POINTS_NAME).read_bytes() == before


@pytest.mark.long
def test_an_engine_that_does_not_start_says_why(
    tmp_path: Path, prune: Callable[..., Path], environment: dict[str, str]
) -> None:
    pruned, results = prune(REFERENCE, tmp_path / "p", [2]), tmp_path / "results"
    words = ["run", "--dense", REFERENCE, pruned, "-o", results, *QUICK, "--serve-flags=--no-such-flag"]
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the engine for ")
    assert "--no-such-flag" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert marked(environment[MARK]) == []
    assert list(results.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(
    tmp_path: Path,
    prune: Callable[..., Path],
    environment: dict[str, str],
    engine_cores: Callable[..., list[psutil.Process]],
    signum: signal.Signals,
) -> None:
    pruned, results = prune(REFERENCE, tmp_path / "p", [2]), tmp_path / "results"
    words = ["run", "--dense", REFERENCE, pruned, "-o", results, *QUICK, f"--serve-flags={SERVE_FLAGS}"]
    run = subprocess.Popen(command(*words), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: bool(engine_cores(marked(environment[MARK]))) or run.poll() is not None, 180)
        assert run.poll() is None
    except BaseException:
        run.kill()
        raise
    run.send_signal(signum)
    assert run.wait(90) == 128 + signum
    assert marked(environment[MARK]) == []
