"""Calibration text, cut into windows, in three parts that never share text: scoring, ranking, held out.

Windows do not overlap. A part is a contiguous region of the text, so that no sentence runs from one part into another.
A file that is longer than needed is read only as far as needed; a data set of the hub is shuffled by the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mi_prun.artefact import Record
from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.self_text import sample_windows
from mi_prun.text_source import TextSource, text_source

SELF = "self"
PARTS = ("scoring", "ranking", "held out")
BATCH_CHARACTERS = 200_000


@dataclass(frozen=True)
class Windows:
    """tokens: (windows, window_tokens) int64 on CPU. text: what they are, in words."""

    tokens: Tensor
    text: str


class CalibrationDescription(Record):
    """fingerprint: sha256 of all token ids, in the order of the parts. wanted_tokens is more than the three parts have
    where the text was shorter than asked for.
    """

    source: str
    window_tokens: int
    scoring_tokens: int
    ranking_tokens: int
    held_out_tokens: int
    wanted_tokens: int
    bos: bool
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class Calibration:
    """scoring: boundary states and scores come from it. ranking: candidates are measured on it. held_out: touched only
    by the final figure of quality.
    """

    scoring: Windows
    ranking: Windows
    held_out: Windows
    description: CalibrationDescription


def load_calibration(
    source: str,
    tokenizer: Any,
    *,
    window_tokens: int,
    scoring_tokens: int,
    ranking_tokens: int,
    held_out_tokens: int,
    seed: int,
    model: Any = None,
) -> Calibration:
    """Windows of about the tokens asked for (at least one window a part). `model` is needed for `self` only.

    Where the text is shorter than asked for, the parts shrink in proportion; under three windows it is refused.
    """
    wanted = [max(1, round(tokens / window_tokens)) for tokens in (scoring_tokens, ranking_tokens, held_out_tokens)]
    if source == SELF:
        if model is None:
            raise ValueError("sampling text from the model needs the model")
        tokens = sample_windows(model, tokenizer, windows=sum(wanted), window_tokens=window_tokens, seed=seed)
        counts, name, bos = wanted, SELF, tokenizer.bos_token_id is not None
    else:
        found = text_source(source, seed=seed)
        tokens, bos = _text_windows(found, tokenizer, sum(wanted), window_tokens)
        counts, name = _shrink(wanted, len(tokens)), found.name
    parts = torch.split(tokens, counts)
    description = CalibrationDescription(
        source=name,
        window_tokens=window_tokens,
        scoring_tokens=parts[0].numel(),
        ranking_tokens=parts[1].numel(),
        held_out_tokens=parts[2].numel(),
        wanted_tokens=sum(wanted) * window_tokens,
        bos=bos,
        seed=seed,
        fingerprint=hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest(),
    )
    scoring, ranking, held_out = (
        Windows(part.contiguous(), f"{name}, {part_name} part") for part, part_name in zip(parts, PARTS, strict=True)
    )
    return Calibration(scoring, ranking, held_out, description)


def _text_windows(source: TextSource, tokenizer: Any, windows: int, window_tokens: int) -> tuple[Tensor, bool]:
    """Up to `windows` windows, and whether each begins with BOS (as the tokenizer itself begins a text)."""
    bos = begins_with_bos(tokenizer)
    body = window_tokens - int(bos)
    ids: list[int] = []
    with progress(f"reading {source.name}", windows * body, "tokens") as advance:
        for batch in _batches(source.open()):
            before = len(ids)
            for document in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
                ids += document
            advance(len(ids) - before)
            if len(ids) >= windows * body:
                break
    count = min(windows, len(ids) // body)
    if count < len(PARTS):
        raise UserError(
            f"calibration text {source.name} gives {len(ids):,} tokens; {len(PARTS)} windows of {window_tokens} are "
            f"needed, one each for {', '.join(PARTS)}: give more text or a smaller --window"
        )
    tokens = torch.tensor(ids[: count * body]).view(count, body)
    return (with_bos(tokens, tokenizer) if bos else tokens), bos


def with_bos(windows: Tensor, tokenizer: Any) -> Tensor:
    """Windows (n, tokens) with BOS before each."""
    return torch.cat([torch.full((len(windows), 1), tokenizer.bos_token_id), windows], dim=1)


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself begins a text with BOS."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]


def _batches(documents: Iterable[str]) -> Iterable[list[str]]:
    """Documents, empty ones left out, in batches of about BATCH_CHARACTERS: the tokenizer works on many at once."""
    batch: list[str] = []
    size = 0
    for document in documents:
        for start in range(0, len(document), BATCH_CHARACTERS):
            piece = document[start : start + BATCH_CHARACTERS]
            if not piece.strip():
                continue
            batch.append(piece + "\n")
            size += len(piece)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _shrink(wanted: list[int], found: int) -> list[int]:
    """Windows a part when only `found` are there: in proportion, at least one each."""
    if found >= sum(wanted):
        return wanted
    ranking, held_out = (max(1, found * part // sum(wanted)) for part in wanted[1:])
    return [found - ranking - held_out, ranking, held_out]
