"""`mi-prun-bench run`: dense and pruned models served in turn, loaded, measured; a record of each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.engine import Engine, running
from bench.load import drive
from bench.machine import commit, this_machine, versions
from bench.record import BenchRecord, Blocks, Load, Memory, append_record
from mi_prun.errors import UserError
from mi_prun.manifest import MANIFEST_NAME, Manifest, is_pruned
from mi_prun.model import ModelFolder, ModelIdentity, identity_of, open_model
from mi_prun.plan import Quality


@dataclass(frozen=True)
class RunSettings:
    """Lengths in tokens. quality_text: measure perplexity and KL of each checkpoint on this text; None takes what the
    plan measured.
    """

    input_tokens: int = 128
    output_tokens: int = 64
    prompts: int = 32
    concurrency: int = 4
    warmups: int = 4
    rounds: int = 3
    seed: int = 0
    quality_text: str | None = None
    serve_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model to measure. manifest: None for the dense one."""

    folder: ModelFolder
    manifest: Manifest | None


WhileServed = Callable[[Engine, Subject], None]


def run(
    dense: str, pruned: Sequence[str], out: Path, settings: RunSettings, while_served: WhileServed | None = None
) -> list[BenchRecord]:
    """Measure the dense model, then each pruned one; `while_served` may use each engine before it is measured."""
    check_settings(settings)
    identity, subjects = check_models(dense, pruned)
    out.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex[:12]
    records = []
    for subject in subjects:
        record = measure(subject, identity, name, settings, while_served)
        append_record(out, record)
        records.append(record)
    return records


def check_settings(settings: RunSettings) -> None:
    for name in ("input_tokens", "output_tokens", "prompts", "concurrency", "rounds"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(settings, name)}")


def check_models(dense: str, pruned: Sequence[str]) -> tuple[ModelIdentity, list[Subject]]:
    """Open everything before anything is started; refuse a pruned model of another dense one."""
    folder = open_model(dense)
    if is_pruned(folder.path):
        raise UserError(f"--dense {dense} is itself a pruned model; name the dense one")
    identity = identity_of(folder)
    subjects = [Subject(folder, None)]
    for name in pruned:
        if not is_pruned(Path(name)):
            raise UserError(f"--pruned {name} is not a folder that `mi-prun apply` wrote ({MANIFEST_NAME} is missing)")
        manifest = Manifest.read(Path(name) / MANIFEST_NAME)
        manifest.plan.check_belongs_to(identity)
        subjects.append(Subject(open_model(name), manifest))
    return identity, subjects


def measure(
    subject: Subject, dense: ModelIdentity, run_name: str, settings: RunSettings, while_served: WhileServed | None
) -> BenchRecord:
    """Serve one model, load it, and say what was seen."""
    model = subject.folder.name
    load = Load(
        tool="vllm bench serve",
        dataset="random",
        input_tokens=settings.input_tokens,
        output_tokens=settings.output_tokens,
        prompts=settings.prompts,
        concurrency=settings.concurrency,
        warmups=settings.warmups,
        seed=settings.seed,
    )
    with running(model, settings.serve_flags) as engine:
        if while_served is not None:
            while_served(engine, subject)
        speed = drive(engine, model, load, settings.rounds)
        memory = Memory(
            weight_bytes=subject.folder.weight_bytes,
            kv_tokens=engine.kv_tokens(),
            peak_rss_bytes=engine.group.peak_rss_bytes,
        )
    return BenchRecord(
        run=run_name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        arm="dense" if subject.manifest is None else "pruned",
        model=model,
        dense_model=dense.name,
        dense_weights_sha256=dense.weights_sha256,
        blocks=blocks_of(subject, dense),
        load=load,
        speed=speed,
        memory=memory,
        startup_s=engine.startup_s,
        quality=quality_of(subject, dense, settings),
        machine=this_machine(),
        versions=versions(),
        commit=commit(),
        serve_flags=settings.serve_flags,
    )


def blocks_of(subject: Subject, dense: ModelIdentity) -> Blocks:
    plan = subject.manifest.plan if subject.manifest else None
    return Blocks(
        num_blocks=dense.num_blocks,
        dropped=plan.dropped if plan else (),
        block_ratio=plan.block_ratio if plan else 0.0,
        parameter_ratio=plan.parameter_ratio if plan else 0.0,
        method=plan.method if plan else None,
    )


def quality_of(subject: Subject, dense: ModelIdentity, settings: RunSettings) -> Quality | None:
    """Measured on the written checkpoint where a text is named, else what its plan measured."""
    if subject.manifest is None:
        return None
    if settings.quality_text is None:
        return subject.manifest.plan.quality
    from mi_prun.quality import measure_quality

    return measure_quality(dense.name, subject.folder.name, settings.quality_text, seed=settings.seed)
