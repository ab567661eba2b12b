"""Records made by hand, with figures whose ratios can be worked out in the head; and a small real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.cli import app
from bench.models.weights import Block, Weights
from bench.records.schema import (
    POINTS_NAME,
    Blocks,
    DenseModel,
    HealedBy,
    Latency,
    Machine,
    MeasuredArm,
    Memory,
    Paired,
    PointRecord,
    Provenance,
    Ratio,
    Roofline,
    Round,
    Selection,
    Speed,
    StartUp,
    Workload,
    append_record,
)
from bench.records.task_schema import (
    TASKS_NAME,
    Continuation,
    GenerationRecord,
    LogprobCheck,
    Origin,
    TaskRecord,
    TaskScore,
    packed,
)
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.healing import Healing
from mi_prun.console import run_app
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan, Quality
from mi_prun.recovery.adapter import Adapter, healed_by, read_adapter, write_adapter

BLOCKS = 8


HEALED = HealedBy(method="fit + lora", text="wiki.txt", tokens=100_000, fit_tokens=16_384, seed=3)


@pytest.fixture
def heal_virtual(tmp_path: Path) -> Callable[..., Path]:
    """`heal_virtual(dense, plan, out, name, tensor)`: a virtual folder that learned one tensor of another value."""

    def make(dense: Path, plan: Plan, out: Path, name: str, tensor: Any) -> Path:
        healing = Healing(method="fit", text="self", tokens=0, fit_tokens=8, seconds=1.0, seed=0)
        file, folder = tmp_path / "adapter", open_model(dense)
        write_adapter(file, Adapter({name: tensor}, {}, {}), plan, healing)
        healed = healed_by(file, read_adapter(file, plan), folder)
        write_checkpoint(folder, plan, out, virtual=True, healed=healed)
        return out

    return make


def made_point(
    dropped: Sequence[int] = (), *, kind: str | None = None, healed: bool = False, **fields: Any
) -> PointRecord:
    """Without k of 8 blocks: rounds of 95, 100, 110 times 1 + k/8 tokens/s, 1 - k/8 of the weights, 10 k more
    perplexity, or 4 k healed; the bound is 1 / (1 - k/8).
    """
    share = len(dropped) / BLOCKS
    faster = 1 + share
    label = f"hybrid {share:.1%}{' healed' if healed else ''}" if dropped else "dense"
    measured = Quality(
        text="held-out.txt",
        protocol="non-overlapping windows of 512 tokens",
        window_tokens=512,
        windows=4,
        predicted_tokens=2044,
        dense_perplexity=50.0,
        pruned_perplexity=50.0 + (4 if healed else 10) * len(dropped),
        kl_nats_per_token=0.1 * len(dropped),
    )
    ratio = Ratio(ratio=faster, low=faster - 0.02, high=faster + 0.02, pairs=3)
    values: dict[str, Any] = {
        "run": "run-1",
        "time": "2026-11-25T05:15:33+00:00",
        "dense": DenseModel(
            name="owner/dense", model_type="llama", shape=None, config_sha256="1" * 64, weights_sha256="0" * 64
        ),
        "arm": MeasuredArm(
            kind=kind or ("pruned" if dropped else "dense"),
            label=label,
            model=f"pruned-{len(dropped)}" if dropped else "owner/dense",
            blocks=Blocks(
                num_blocks=BLOCKS,
                dropped=tuple(dropped),
                block_ratio=share,
                parameter_ratio=share * 0.9,
                method="hybrid" if dropped else None,
            ),
            weights="virtual" if dropped else None,
            healing=HEALED if healed else None,
        ),
        "load": Workload(
            tool="vllm bench serve",
            preset="chat",
            concurrency=4,
            rate_per_s=None,
            input_tokens=128,
            output_tokens=64,
            prompts=32,
            warmups=4,
            seed=0,
        ),
        "speed": Speed(rounds=tuple(made_round(base * faster) for base in (95.0, 100.0, 110.0))),
        "paired": Paired(
            output_tokens_per_s=ratio,
            total_tokens_per_s=ratio,
            requests_per_s=ratio,
            ttft=ratio,
            tpot=ratio,
            itl=ratio,
            e2e=ratio,
        )
        if dropped
        else None,
        "roofline": (
            Roofline(
                phase="decode",
                batch=4,
                tokens=160,
                dense_bytes=8 * 10**8,
                bytes=round(8 * 10**8 * (1 - share)),
                dense_flops=32 * 10**8,
                flops=round(32 * 10**8 * (1 - share)),
                bound=1 / (1 - share),
                speedup=ratio,
            ),
        )
        if dropped
        else (),
        "memory": Memory(
            weight_bytes=int(2**30 * (1 - share)),
            engine_weight_bytes=None,
            kv_tokens=round(100_000 / (1 - share)),
            length_tokens=192,
            max_concurrency=round(100_000 / (1 - share)) / 192,
            peak_device_bytes=None,
            peak_rss_bytes=2**31,
        ),
        "start_up": StartUp(starts=1, startup_s=25.0, load_s=1.5),
        "quality": measured,
        "quality_measured_on": "plan",
        "acceptance": None,
        "bound": 1 / (1 - share) if dropped else None,
        "selection": Selection(
            plan_sha256="4" * 64, settings={"rerank": 24 + len(dropped), "calibration": "books.txt", "seed": 7}
        )
        if dropped
        else None,
        "provenance": Provenance(
            machine=Machine(cpu="AMD <EPYC>", cores=2, memory_bytes=2**34, gpu=None, system="Linux x86_64"),
            versions={"mi-prun": "0.1.0", "vllm": "0.32.0", "torch": "2.13.0"},
            commit="0123456789ab",
            serve_flags=("--enforce-eager",),
            environment={"OMP_NUM_THREADS": "1"},
            seed=0,
            settings_sha256="2" * 64,
            engines_alive="together",
            sweep={"ratios": "0,.125,.25,.5", "quality_text": None},
        ),
    }
    return PointRecord(**(values | fields))


def made_round(output_tokens_per_s: float) -> Round:
    """Latencies of 800/rate ms and the like."""
    base = 800 / output_tokens_per_s
    latency = Latency(mean_ms=base * 1.1, p50_ms=base, p90_ms=base * 1.5, p99_ms=base * 2)
    return Round(
        output_tokens_per_s=output_tokens_per_s,
        total_tokens_per_s=output_tokens_per_s * 3,
        requests_per_s=output_tokens_per_s / 64,
        duration_s=20.48,
        completed=32,
        ttft=latency,
        tpot=latency,
        itl=latency,
        e2e=latency,
    )


@pytest.fixture
def point() -> Callable[..., PointRecord]:
    return made_point


@pytest.fixture
def save() -> Callable[..., str]:
    """`save(folder, points, tasks)`: a results folder with these records. Returns its path."""

    def save(folder: Path, points: Sequence[PointRecord] = (), tasks: Sequence[TaskRecord] = ()) -> str:
        folder.mkdir(exist_ok=True)
        for name, records in ((POINTS_NAME, points), (TASKS_NAME, tasks)):
            for record in records:
                append_record(folder, record, name)
        return str(folder)

    return save


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refusal(*words)`: the one line that `mi-prun-bench` refuses these words with; it writes nothing."""

    def call(*words: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["mi-prun-bench", *map(str, words)])
        assert run_app(app) == 2
        assert list(tmp_path.iterdir()) == []
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return call


@pytest.fixture
def toy_weights() -> Weights:
    """A model of two bytes a number: blocks of 100 numbers, a head of 40, rows of 4, two KV heads, four query heads."""
    return Weights(
        blocks=(Block(num_bytes=200, elements=100),) * 4,
        head_bytes=80,
        head_elements=40,
        row_bytes=8,
        rest_bytes=6,
        kv_bytes=8,
        attention_width=4,
        total_bytes=886,
    )


@pytest.fixture
def one_sweep() -> list[PointRecord]:
    return [made_point(dropped) for dropped in ((), (3,), (2, 3), (2, 3, 5, 6))]


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


@pytest.fixture
def healed_sweep(one_sweep: list[PointRecord]) -> list[PointRecord]:
    """The same, and the models without one and two blocks healed."""
    return [*one_sweep, made_point((3,), healed=True), made_point((2, 3), healed=True)]


def made_task(
    dropped: Sequence[int] = (),
    right: Sequence[bool] = (True, False, True, True),
    *,
    healed: bool = False,
    **fields: Any,
) -> TaskRecord:
    """Answers to four items, or as many as `right` says; the texts of the items are the same for all models."""
    given = made_point(dropped, healed=healed)
    score = {
        "task": "boolq",
        "source": "boolq.jsonl",
        "fewshot": 0,
        "metric": "acc",
        "scores": {"acc": sum(right) / len(right)},
        "correct": {"acc": packed(right)},
        "items": len(right),
        "items_sha256": "3" * 64,
        "truncated_items": 0,
    }
    values: dict[str, Any] = {
        "run": "asked-1",
        "time": "2026-11-25T06:00:00+00:00",
        "dense": given.dense,
        "arm": given.arm,
        "context_tokens": 512,
        "endpoint": False,
        "provenance": given.provenance,
        "limit": None,
        "logprobs": LogprobCheck(
            strings=4, tokens=100, mean_nats=0.01, max_nats=0.04, tolerance_mean_nats=0.05, direct="float32, cpu"
        ),
    }
    own = {name: fields.pop(name) for name in list(fields) if name in score}
    return TaskRecord(score=TaskScore(**(score | own)), **(values | fields))


@pytest.fixture
def task() -> Callable[..., TaskRecord]:
    return made_task


@pytest.fixture
def generation() -> Callable[..., GenerationRecord]:
    """`generation(dropped, text)`: one prompt continued."""

    def make(dropped: Sequence[int], text: str) -> GenerationRecord:
        fields = {name: getattr(made_task(dropped), name) for name in Origin.model_fields}
        return GenerationRecord(
            **fields,
            temperature=0.7,
            seed=0,
            max_tokens=16,
            continuations=(Continuation(prompt="Once <upon>", text=text),),
        )

    return make


@pytest.fixture
def judged_elsewhere() -> Callable[..., PointRecord]:
    """`judged_elsewhere(point, text)`: the same model, its quality measured on other text, where dense has 40."""

    def judge(point: PointRecord, text: str = "other.txt") -> PointRecord:
        assert point.quality is not None
        ratio = point.quality.pruned_perplexity / point.quality.dense_perplexity
        other = {"text": text, "dense_perplexity": 40.0, "pruned_perplexity": 40.0 * ratio}
        return point.model_copy(update={"quality": point.quality.model_copy(update=other)})

    return judge
