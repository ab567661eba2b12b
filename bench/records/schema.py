"""What is kept of a sweep: JSON lines in a results folder, appended and never rewritten.

    rounds.jsonl       one load on one model, once: what a killed sweep goes on from
    points.jsonl       one model under one load: medians over its rounds, beside the dense model's
    tasks.jsonl        one model on one evaluation task (`task_schema.py`)
    generations.jsonl  the answers of one model (`task_schema.py`)

Points of one `run` were measured side by side. Ratios are taken within a run, never across. A line of a schema version
that is not READABLE is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from bench.records.saturation import PILES_UP
from mi_prun.artefact import Record
from mi_prun.checkpoint.manifest import Weights
from mi_prun.errors import UserError
from mi_prun.files import append_line
from mi_prun.json_lines import parse_json, read_whole_lines
from mi_prun.plan.plan import Quality

POINTS_NAME = "points.jsonl"
ROUNDS_NAME = "rounds.jsonl"
SCHEMA_VERSION: Final = 3
# 2: without the fields that have a default, and with acceptance counted since the engine's start.
READABLE = (2, SCHEMA_VERSION)
FEW_ROUNDS = 3  # of fewer, an interval says next to nothing

MeasuredOn = Literal["plan", "checkpoint", "healing"]
ArmKind = Literal["dense", "pruned", "draft"]
Phase = Literal["prefill", "decode"]


class Machine(Record):
    """The machine that a record was made on. gpu: names and memory; driver: its version; None where there is no GPU."""

    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None
    system: str
    driver: str | None = None


class Provenance(Record):
    """Where a figure comes from.

    environment: the variables that steer the engine, of those in force. settings_sha256: of all that was asked for; a
    run is resumed only where it is the same. engines_alive: `together`, one loaded while the others idle; `alone`,
    started anew each round. sweep: what `sweep` was asked for beside the loads: ratios, methods, calibration, quality
    text; empty for other commands.
    """

    machine: Machine
    versions: dict[str, str]
    commit: str | None
    serve_flags: tuple[str, ...]
    environment: dict[str, str]
    seed: int
    settings_sha256: str
    engines_alive: Literal["together", "alone"]
    sweep: dict[str, str | int | bool | None] = Field(default_factory=dict)


class Blocks(Record):
    """The blocks of a measured model, 0-based. The dense one drops none."""

    num_blocks: int
    dropped: tuple[int, ...]
    block_ratio: float
    parameter_ratio: float
    method: str | None


class HealedBy(Record):
    """How a pruned model was healed: method, text, tokens trained on, tokens of the closed form, seed.

    settings_sha256: of its other settings (rank, learning rate, ...); None in records of before.
    """

    method: str
    text: str
    tokens: int
    fit_tokens: int
    seed: int
    settings_sha256: str | None = None


class MeasuredArm(Record):
    """A model of a run.

    label: unique in the run, for people: `dense`, `hybrid 25.0%`, `hybrid 25.0% healed`, `draft hybrid 50.0%`. kind:
    `draft` is the dense model, its answers drafted by the blocks that are kept. weights: None for the dense model's
    own; `dummy` for a shape, whose values mean nothing. healing: None where the kept blocks are the dense model's.
    """

    kind: ArmKind
    label: str
    model: str
    blocks: Blocks
    weights: Weights | Literal["dummy"] | None
    draft_tokens: int | None = None
    healing: HealedBy | None = None

    @property
    def identity(self) -> tuple[str, tuple[int, ...], HealedBy | None]:
        """What tells it from other models of its dense one, whatever it is called."""
        return self.kind, self.blocks.dropped, self.healing

    @property
    def method(self) -> str:
        """How its blocks were chosen, and whether they were healed: what its line in a plot is called."""
        return (self.blocks.method or "by hand") + (" healed" if self.healing else "")


class Selection(Record):
    """How an arm's blocks were chosen.

    plan_sha256: of the plan, whatever the dense model is called in it. settings: the plan's own: calibration text,
    number of candidates compared (`rerank`), seed, estimator.
    """

    plan_sha256: str
    settings: dict[str, str | int | float | bool | None]


class DenseModel(Record):
    """The model that all arms of a run come from. shape: its name where only the config is real; weights_sha256 is then
    None.
    """

    name: str
    model_type: str
    shape: str | None
    config_sha256: str
    weights_sha256: str | None


class Trace(Record):
    """A file of request lengths (and times), told by its name and digest."""

    name: str
    sha256: str
    requests: int


class Workload(Record):
    """A load: what is asked of the engine.

    Lengths are in tokens, of every request; means over the file for a trace. text: prompts are pieces of it; None: of
    random tokens. Answers are greedy, and as long as asked for. concurrency: requests in flight at most (closed loop).
    rate_per_s: requests that arrive a second, as a Poisson process (open loop). Exactly one of the two is given.
    """

    tool: str
    preset: str
    concurrency: int | None
    rate_per_s: float | None
    input_tokens: float
    output_tokens: float
    prompts: int
    warmups: int
    seed: int
    trace: Trace | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one_loop(self) -> Workload:
        if (self.concurrency is None) == (self.rate_per_s is None):
            raise ValueError("either concurrency (closed loop) or rate_per_s (open loop) must be given")
        return self

    @property
    def label(self) -> str:
        """The load for people: `decode-heavy, 8 in flight` or `chat, 2.5 requests/s`."""
        how = f"{self.concurrency} in flight" if self.concurrency else f"{self.rate_per_s:.4g} requests/s"
        return f"{self.preset}, {how}"


class Latency(Record):
    """A latency in milliseconds, over the requests of a round."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


class Round(Record):
    """The figures of one round.

    energy_j: of the device while it ran; None where the device does not say. backlog_growth: the share of an open
    loop's requests that piled up (`saturation.py`).
    """

    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    duration_s: float
    completed: int
    ttft: Latency
    tpot: Latency
    itl: Latency
    e2e: Latency
    energy_j: float | None = None
    backlog_growth: float | None = None


class Speed(Record):
    """The rounds of a load, in the order they were run. The figures are medians over them; latencies field by field."""

    rounds: tuple[Round, ...] = Field(min_length=1)

    @property
    def output_tokens_per_s(self) -> float:
        """The median over the rounds."""
        return median(one.output_tokens_per_s for one in self.rounds)

    @property
    def total_tokens_per_s(self) -> float:
        """The median over the rounds."""
        return median(one.total_tokens_per_s for one in self.rounds)

    @property
    def requests_per_s(self) -> float:
        """The median over the rounds."""
        return median(one.requests_per_s for one in self.rounds)

    @property
    def ttft(self) -> Latency:
        """The time to the first token: medians over the rounds."""
        return _median_latency([one.ttft for one in self.rounds])

    @property
    def tpot(self) -> Latency:
        """The time per output token: medians over the rounds."""
        return _median_latency([one.tpot for one in self.rounds])

    @property
    def itl(self) -> Latency:
        """The latency between tokens: medians over the rounds."""
        return _median_latency([one.itl for one in self.rounds])

    @property
    def e2e(self) -> Latency:
        """The latency from end to end: medians over the rounds."""
        return _median_latency([one.e2e for one in self.rounds])

    @property
    def completed(self) -> int:
        """The number of requests that were answered, over all rounds."""
        return sum(one.completed for one in self.rounds)

    @property
    def energy_j(self) -> float | None:
        """The joules of a round, median; None where a round does not say."""
        return _median_of_all([one.energy_j for one in self.rounds])

    @property
    def backlog_growth(self) -> float | None:
        """The share of the requests that piled up, median; None where a round does not say."""
        return _median_of_all([one.backlog_growth for one in self.rounds])

    @property
    def piles_up(self) -> bool:
        """Return whether requests pile up beyond chance."""
        growth = self.backlog_growth
        return growth is not None and growth > PILES_UP


def _median_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if len(known) == len(values) else None


def _median_latency(latencies: Sequence[Latency]) -> Latency:
    return Latency(**{name: median(getattr(one, name) for one in latencies) for name in Latency.model_fields})


class Ratio(Record):
    """A paired ratio to the dense model over `pairs` rounds: the geometric mean, and its 95 % interval.

    low, high: of Student's t on the log ratios; None for fewer than two pairs.
    """

    ratio: float
    low: float | None
    high: float | None
    pairs: int


class Paired(Record):
    """How many times faster than the dense model, round by round. Above 1 is better for every field.

    Throughputs are pruned over dense; latencies (their median in a round) are dense over pruned. tpot, itl: None where
    a request has one token only.
    """

    output_tokens_per_s: Ratio
    total_tokens_per_s: Ratio
    requests_per_s: Ratio
    ttft: Ratio
    tpot: Ratio | None
    itl: Ratio | None
    e2e: Ratio


class Roofline(Record):
    """The bound of a phase (`roofline.py`), and what was reached of it.

    speedup: of TTFT (prefill) or TPOT (decode). batch: requests in a step. tokens: of the prompt (prefill), or in the
    KV cache of each request (decode).
    """

    phase: Phase
    batch: int
    tokens: int
    dense_bytes: int
    bytes: int
    dense_flops: int
    flops: int
    bound: float
    speedup: Ratio

    @property
    def efficiency(self) -> float:
        """The measured speed-up over its bound."""
        return self.speedup.ratio / self.bound


class Memory(Record):
    """What a model takes.

    weight_bytes: by the safetensors headers (by the config, for a shape). engine_weight_bytes: as the engine states.
    kv_tokens: that the KV cache holds, as the engine states. max_concurrency: requests of length_tokens that fit in it.
    peak_device_bytes: of the engine's processes on the GPU; None without one. peak_rss_bytes: of all its processes.
    """

    weight_bytes: int
    engine_weight_bytes: int | None
    kv_tokens: int
    length_tokens: int
    max_concurrency: float
    peak_device_bytes: int | None
    peak_rss_bytes: int


class DraftAcceptance(Record):
    """What was accepted of a draft. drafts: passes of the dense model that checked drafted tokens; tokens are summed
    over them.
    """

    drafts: int
    drafted_tokens: int
    accepted_tokens: int

    @property
    def rate(self) -> float:
        """The share of the drafted tokens that were accepted."""
        return self.accepted_tokens / self.drafted_tokens

    @property
    def length(self) -> float:
        """The tokens that a pass of the dense model yields: those accepted, and its own one."""
        return 1 + self.accepted_tokens / self.drafts


class StartUp(Record):
    """How long an engine takes to start, in seconds; medians over the starts.

    startup_s: to the first 200 of /health. load_s: of the weights, as the engine says; None where it does not.
    """

    starts: int
    startup_s: float
    load_s: float | None


class RoundRecord(Record):
    """One load on one arm, once.

    session: of the process that measured; rounds pair only within one. acceptance: of this round's requests. The
    engine's other figures are those it had by then.
    """

    schema_version: Literal[2, 3] = SCHEMA_VERSION
    run: str
    settings_sha256: str
    session: str
    time: str
    arm: str
    load: Workload
    number: int
    figures: Round
    startup_s: float
    load_s: float | None
    engine_weight_bytes: int | None
    kv_tokens: int
    peak_device_bytes: int | None
    peak_rss_bytes: int
    acceptance: DraftAcceptance | None


class PointRecord(Record):
    """One arm under one load. Memory, start-up and quality are the same for all loads of an arm.

    paired: None for the dense arm. roofline: of the phases for which the load shows them; empty for dense and draft.
    bound: of the speed-up of tokens/s, at most (`roofline.py`); None for dense and draft, and where it is not known.
    quality: the dense arm's is the dense perplexity twice, KL 0; None for a draft, whose answers are the dense model's.
    quality_measured_on: the dense model with blocks skipped, as the plan did; the checkpoint's own files; or what
    healing judged before and after.
    acceptance: over all rounds of the load. selection: None for dense, and for a shape.
    """

    schema_version: Literal[2, 3] = SCHEMA_VERSION
    run: str
    time: str
    dense: DenseModel
    arm: MeasuredArm
    load: Workload
    speed: Speed
    paired: Paired | None
    roofline: tuple[Roofline, ...]
    memory: Memory
    start_up: StartUp
    quality: Quality | None
    quality_measured_on: MeasuredOn | None
    acceptance: DraftAcceptance | None
    provenance: Provenance
    bound: float | None = None
    selection: Selection | None = None

    @property
    def saturated(self) -> bool:
        """Return whether requests arrived faster than they were answered (open loop)."""
        return self.load.rate_per_s is not None and self.speed.piles_up

    @property
    def impossible(self) -> list[str]:
        """The speed-ups whose whole interval is above their bound: something else than the blocks differs."""
        named: list[tuple[str, float | None, float]] = []
        named += [(roof.phase, roof.speedup.low, roof.bound) for roof in self.roofline]
        if self.paired and self.bound is not None:
            named.append(("tokens/s", self.paired.output_tokens_per_s.low, self.bound))
        return [
            f"{name} at least {low:.3f}x of at most {bound:.3f}x" for name, low, bound in named if low and low > bound
        ]


RecordKind = TypeVar("RecordKind", bound=Record)


def append_record(folder: Path, record: Record, name: str = POINTS_NAME) -> None:
    """Append a record as a line of the file `name` of a results folder."""
    append_line(folder / name, record.model_dump_json())


def read_points(folder: Path) -> list[PointRecord]:
    """Read all points of a results folder, in the order they were made. Raises UserError where there is no file."""
    if not (folder / POINTS_NAME).is_file():
        older = " (records.jsonl there is an earlier release's)" if (folder / "records.jsonl").is_file() else ""
        raise UserError(f"{folder} has no {POINTS_NAME}{older}; make some with `mi-prun-bench sweep`")
    return read_lines(folder, POINTS_NAME, PointRecord)


def read_lines(folder: Path, name: str, kind: type[RecordKind]) -> list[RecordKind]:
    """Read the records of a file of a results folder, in order; none where there is no such file.

    Raises UserError for a line that is not ours, or not of a release that can be read, or cut short.
    """
    path = folder / name
    return [_parse(f"{path}, line {number}", line, kind) for number, line in enumerate(read_whole_lines(path), 1)]


def _parse(where: str, line: bytes, kind: type[RecordKind]) -> RecordKind:
    data = parse_json(line, where)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in READABLE:
        raise UserError(
            f"{where} has schema version {version!r}; this release reads {' and '.join(map(str, READABLE))}: "
            "move the file away"
        )
    try:
        return kind.model_validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: field {'.'.join(map(str, first['loc'])) or 'as a whole'}: {first['msg']}") from error
