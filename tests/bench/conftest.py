"""Records made by hand, with figures whose ratios can be worked out in the head; and a small real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.record import BenchRecord, Blocks, Latency, Load, Machine, Memory, Speed
from mi_prun.plan import Quality

BLOCKS = 8


def made_record(dropped: Sequence[int] = (), *, run: str = "run-1", quality: bool = True, **fields: Any) -> BenchRecord:
    """Without k of 8 blocks: 1 + k/8 times the tokens/s, 1 - k/8 of the weights, 10 k more perplexity."""
    share = len(dropped) / BLOCKS
    throughput = 100 * (1 + share)
    latency = Latency(mean_ms=10 - share, p50_ms=8 - share, p99_ms=20 - share)
    measured = Quality(
        text="held-out.txt",
        protocol="non-overlapping windows of 512 tokens",
        window_tokens=512,
        windows=4,
        predicted_tokens=2044,
        dense_perplexity=50.0,
        pruned_perplexity=50.0 + 10 * len(dropped),
        kl_nats_per_token=0.1 * len(dropped),
    )
    known = measured if dropped and quality else None
    values: dict[str, Any] = {
        "run": run,
        "time": "2026-11-24T05:15:33+00:00",
        "arm": "pruned" if dropped else "dense",
        "model": f"pruned-{len(dropped)}" if dropped else "owner/dense",
        "dense_model": "owner/dense",
        "dense_weights_sha256": "0" * 64,
        "blocks": Blocks(
            num_blocks=BLOCKS,
            dropped=tuple(dropped),
            block_ratio=share,
            parameter_ratio=share * 0.9,
            method="mi-prun" if dropped else None,
        ),
        "load": Load(
            tool="vllm bench serve",
            dataset="random",
            input_tokens=128,
            output_tokens=64,
            prompts=32,
            concurrency=4,
            warmups=4,
            seed=0,
        ),
        "speed": Speed(
            output_tokens_per_s=throughput,
            round_output_tokens_per_s=(throughput - 5, throughput, throughput + 10),
            requests_per_s=throughput / 64,
            ttft=latency,
            tpot=latency,
            itl=latency,
            e2e=latency,
            completed=96,
        ),
        "memory": Memory(
            weight_bytes=int(2**30 * (1 - share)), kv_tokens=round(1000 / (1 - share)), peak_rss_bytes=2**31
        ),
        "startup_s": 25.0,
        "quality": known,
        "quality_measured_on": "plan" if known else None,
        "machine": Machine(cpu="AMD <EPYC>", cores=2, memory_bytes=2**34, gpu=None, system="Linux x86_64"),
        "versions": {"mi-prun": "0.1.0", "vllm": "0.32.0"},
        "commit": "0123456789ab",
        "serve_flags": ("--enforce-eager",),
    }
    return BenchRecord(**(values | fields))


@pytest.fixture
def record() -> Callable[..., BenchRecord]:
    return made_record


@pytest.fixture
def one_run() -> list[BenchRecord]:
    return [made_record(dropped) for dropped in ((), (3,), (2, 3), (2, 3, 5, 6))]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A random Llama of four blocks, as a folder."""
    return tiny_llama(tmp_path / "dense", seed=0)


@pytest.fixture
def other_dense(tmp_path: Path) -> Path:
    """Of the same shape, with other weights."""
    return tiny_llama(tmp_path / "other", seed=1)


def tiny_llama(path: Path, seed: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path
