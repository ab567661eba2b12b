"""`mi-prun-bench draft`: the dense model alone, then with each draft, under the same load.

Acceptance is what the engine itself counts (`vllm:spec_decode_*` of /metrics), warm-up included. The prompts are pieces
of a text: after random tokens a draft foresees little, and a speed-up measured there says nothing.
"""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

from bench.engine import running
from bench.load import drive
from bench.machine import commit, this_machine, versions
from bench.prompts import prompts_of
from bench.record import Blocks, Load, Machine, Speed, append_record
from bench.run import RunSettings, check_results, check_settings, say
from bench.subject import Subject
from mi_prun.artefact import Record
from mi_prun.errors import UserError
from mi_prun.inspection import read_manifest
from mi_prun.model import identity_of, open_model
from mi_prun.plan import Plan

DRAFTS_NAME = "drafts.jsonl"
TEMPERATURE = 0.0


class Acceptance(Record):
    """drafts: passes of the dense model that checked drafted tokens. Tokens are summed over all of them."""

    drafts: int
    drafted_tokens: int
    accepted_tokens: int

    @property
    def rate(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self.accepted_tokens / self.drafted_tokens

    @property
    def length(self) -> float:
        """Tokens that a pass of the dense model yields: those accepted, and its own one."""
        return 1 + self.accepted_tokens / self.drafts


class DraftRecord(Record):
    """One model of one run.

    draft_tokens: drafted at a time. Without acceptance it is the dense model alone, whose `blocks` drop nothing.
    """

    schema_version: Literal[1] = 1
    run: str
    time: str
    dense_model: str
    dense_weights_sha256: str
    blocks: Blocks
    draft_tokens: int | None
    acceptance: Acceptance | None
    speed: Speed
    load: Load
    startup_s: float
    machine: Machine
    versions: dict[str, str]
    commit: str | None
    serve_flags: tuple[str, ...]

    def line(self, alone: DraftRecord) -> str:
        """For people; `alone` is the dense model without a draft, of the same run."""
        speed, base = self.speed.output_tokens_per_s, alone.speed.output_tokens_per_s
        figures = f"{speed:8.1f} tokens/s ({speed / base:.2f}x), TPOT {self.speed.tpot.p50_ms:.2f} ms"
        if self.acceptance is None:
            return f"dense alone           {figures}"
        return (
            f"draft without {self.blocks.block_ratio:5.1%}   {figures}, {self.draft_tokens} drafted at a time, "
            f"{self.acceptance.rate:.1%} accepted, {self.acceptance.length:.2f} tokens a pass"
        )


def run_drafts(
    dense: str, drafts: Sequence[Path], out: Path, settings: RunSettings, text: str, draft_tokens: int | None
) -> list[DraftRecord]:
    """Measure the dense model alone, then with each draft; a record of each, the dense one first.

    text: what the prompts are pieces of, a file or data set. draft_tokens: None leaves it to the plans.
    Raises UserError before anything is started for a draft of another model or a setting that will not do.
    """
    folder = open_model(dense)
    identity = identity_of(folder)
    plans = [read_manifest(path).plan if path.is_dir() else Plan.read(path) for path in drafts]
    for found in plans:
        found.check_belongs_to(identity)
    check_settings(settings, Subject(folder, None))
    counts = (settings.warmups, *[settings.prompts] * settings.rounds)
    name, prompts = prompts_of(folder, text, counts, settings.input_tokens)
    load = settings.load.model_copy(update={"dataset": name, "temperature": TEMPERATURE})
    check_results(out)
    run, records = uuid.uuid4().hex[:12], []
    cases: list[tuple[Path | None, Plan | None]] = [(None, None), *zip(drafts, plans, strict=True)]
    for path, plan in cases:
        flags = list(settings.serve_flags)
        if path is not None:
            flags += ["--draft", str(path)]
            flags += ["--draft-tokens", str(draft_tokens)] if draft_tokens is not None else []
        say(f"{path or 'dense alone'}: starting")
        with running(dense, flags) as engine:
            speed = drive(engine, dense, load, settings.rounds, prompts)
            metrics = get(f"{engine.base_url}/metrics")
            said = json.loads(get(f"{engine.base_url}/v1/pruning"))
        record = DraftRecord(
            run=run,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            dense_model=dense,
            dense_weights_sha256=identity.weights_sha256,
            blocks=Blocks(
                num_blocks=identity.num_blocks,
                dropped=plan.dropped if plan else (),
                block_ratio=plan.block_ratio if plan else 0.0,
                parameter_ratio=plan.parameter_ratio if plan else 0.0,
                method=plan.method if plan else None,
            ),
            draft_tokens=None if plan is None else int(said["draft"]["tokens"]),
            acceptance=None if plan is None else acceptance_of(metrics),
            speed=speed,
            load=load,
            startup_s=engine.startup_s,
            machine=this_machine(),
            versions=versions(),
            commit=commit(),
            serve_flags=settings.serve_flags,
        )
        append_record(out, record, DRAFTS_NAME)
        records.append(record)
    return records


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def acceptance_of(metrics: str) -> Acceptance:
    """Read the counters off a Prometheus page of vLLM; summed over engines."""
    sums = {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            for name in sums:
                if sample.name == f"vllm:spec_decode_num_{name}_total":
                    sums[name] += int(sample.value)
    if not sums["draft_tokens"]:
        raise UserError("the engine drafted no token (vllm:spec_decode_num_draft_tokens on its /metrics)")
    return Acceptance(
        drafts=sums["drafts"], drafted_tokens=sums["draft_tokens"], accepted_tokens=sums["accepted_tokens"]
    )
