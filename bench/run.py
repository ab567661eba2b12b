"""`mi-prun-bench run`: dense and pruned models served in turn, loaded, measured; a record of each.

Everything is opened and checked before the first engine is started. A record is on the disk as soon as its model is
measured: a run that is killed leaves whole records.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.engine import Engine, running
from bench.load import drive
from bench.machine import commit, this_machine, versions
from bench.quality import measured_quality
from bench.record_v1 import RECORDS_NAME, BenchRecord, Load, MeasuredOn, Memory, append_record, read_records
from bench.subject import Subject, open_subjects
from mi_prun.errors import UserError
from mi_prun.files import one_line_os_errors
from mi_prun.model import ModelIdentity
from mi_prun.plan import Quality

TOOL = "vllm bench serve"
DATASET = "random"
# The bench sets these itself, or could not reach the server with them.
RESERVED_FLAGS = ("--model", "--host", "--port", "--uds", "--config", "--served-model-name", "--api-key", "--plan")
LENGTH_FLAG = "--max-model-len"


@dataclass(frozen=True)
class RunSettings:
    """Lengths in tokens. warmups: requests that are not counted, before the first round.

    quality_text: measure perplexity and KL of each checkpoint on this text; None takes what the plan measured.
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

    @property
    def load(self) -> Load:
        return Load(
            tool=TOOL,
            dataset=DATASET,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            prompts=self.prompts,
            concurrency=self.concurrency,
            warmups=self.warmups,
            seed=self.seed,
        )


WhileServed = Callable[[Engine, Subject], None]


def run(
    dense: str, pruned: Sequence[str], out: Path, settings: RunSettings, while_served: WhileServed | None = None
) -> list[BenchRecord]:
    """Measure the dense model, then each pruned one; `while_served` may use each engine before it is measured.

    Raises UserError before anything is started for a setting, a model or a results folder that will not do.
    """
    identity, subjects = open_subjects(dense, pruned)
    check_settings(settings, subjects[0])
    check_results(out)
    name = uuid.uuid4().hex[:12]
    records = []
    for subject in subjects:
        record = measure(subject, identity, name, settings, while_served)
        append_record(out, record)
        records.append(record)
    return records


def check_settings(settings: RunSettings, dense: Subject) -> None:
    for name in ("input_tokens", "output_tokens", "prompts", "concurrency", "rounds"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(settings, name)}")
    for flag in settings.serve_flags:
        if flag.partition("=")[0] in RESERVED_FLAGS:
            raise UserError(f"--serve-flags may not hold {flag.partition('=')[0]}: the bench chooses it")
    wanted, context = settings.input_tokens + settings.output_tokens, _context_tokens(settings, dense)
    if context is not None and wanted > context:
        raise UserError(
            f"--input-tokens {settings.input_tokens} and --output-tokens {settings.output_tokens} make {wanted}, "
            f"but the model is served with a context of {context}; ask for less"
        )


def _context_tokens(settings: RunSettings, dense: Subject) -> int | None:
    """Of the flags, else of the config; None where neither says it in plain digits."""
    words = [part for flag in settings.serve_flags for part in flag.split("=", 1)]
    if LENGTH_FLAG in words[:-1]:
        text = words[words.index(LENGTH_FLAG) + 1]
        return int(text) if text.isdecimal() else None
    context = dense.folder.config.get("max_position_embeddings")
    return context if isinstance(context, int) else None


def check_results(out: Path) -> None:
    """Make the folder, and refuse one whose records this release could not read back beside its own."""
    with one_line_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise UserError(f"--output {out} cannot be written to; choose another folder")
    if (out / RECORDS_NAME).exists():
        read_records(out)


def measure(
    subject: Subject, dense: ModelIdentity, run_name: str, settings: RunSettings, while_served: WhileServed | None
) -> BenchRecord:
    """Serve one model, load it, and say what was seen."""
    model = subject.folder.name
    quality, measured_on = _quality(subject, dense, settings)
    say(f"{subject.title} ({model}): starting")
    with running(model, settings.serve_flags) as engine:
        say(f"{subject.title}: ready after {engine.startup_s:.0f} s; {settings.rounds} rounds of load")
        if while_served is not None:
            while_served(engine, subject)
        speed = drive(engine, model, settings.load, settings.rounds)
        memory = Memory(
            weight_bytes=subject.weight_bytes,
            kv_tokens=engine.kv_tokens(),
            peak_rss_bytes=engine.group.peak_rss_bytes,
        )
    say(f"{subject.title}: {speed.output_tokens_per_s:,.1f} tokens/s")
    return BenchRecord(
        run=run_name,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        arm="dense" if subject.manifest is None else "pruned",
        model=model,
        dense_model=dense.name,
        dense_weights_sha256=dense.weights_sha256,
        blocks=subject.blocks(dense),
        load=settings.load,
        speed=speed,
        memory=memory,
        startup_s=engine.startup_s,
        quality=quality,
        quality_measured_on=measured_on,
        machine=this_machine(),
        versions=versions(),
        commit=commit(),
        serve_flags=settings.serve_flags,
    )


def _quality(subject: Subject, dense: ModelIdentity, settings: RunSettings) -> tuple[Quality | None, MeasuredOn | None]:
    """On the written checkpoint where a text is named, else what its plan measured."""
    if subject.manifest is None:
        return None, None
    if settings.quality_text is None:
        return subject.manifest.plan.quality, "plan" if subject.manifest.plan.quality else None
    say(f"{subject.title}: quality on {settings.quality_text}")
    return measured_quality(dense.name, subject.folder.name, settings.quality_text, settings.seed), "checkpoint"


def say(line: str) -> None:
    """Progress goes to stderr; stdout is for the figures."""
    print(line, file=sys.stderr, flush=True)
