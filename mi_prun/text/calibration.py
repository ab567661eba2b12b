"""Calibration text, cut into windows, in three parts that never share text: scoring, ranking, held out.

Windows do not overlap. How they are taken depends on the text:

- A file much longer than needed: each window is a passage of its own, drawn by the seed from the first MOST_CHARACTERS.
  Windows side by side repeat each other, and a loss measured on them is noisier than their number says.
- A shorter file: each part is a contiguous region.
- A data set of the hub: it is shuffled by the seed and read as far as needed.

Several texts are cut one by one; their windows then take turns, so that a beginning of any part has each in its share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mi_prun.artefact import Record
from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.settings import SELF
from mi_prun.text.self_text import sample_windows, start_of_sampled
from mi_prun.text.text_source import TextSource, text_source
from mi_prun.text.weighted_source import WeightedSource, names_of, parse_sources, turns

LEAST_RANKING_SHARE = 4
PARTS = ("scoring", "ranking", "held-out")
BATCH_CHARACTERS = 200_000
MOST_CHARACTERS = 1 << 25  # passages are drawn from this much of a file
SCATTER_FROM = 3  # passages needed for each window wanted; with fewer the beginning of the text is taken
PASSAGE_MARGIN = 1.5  # tokens of a passage, about, for each token of a window
PASSAGES_AT_ONCE = 256
MOST_WORD = 40  # characters


@dataclass(frozen=True)
class Windows:
    """Windows of text as tokens.

    tokens: (windows, window_tokens) int64 on CPU. text: what they are, in words.
    """

    tokens: Tensor
    text: str


class CalibrationDescription(Record):
    """The text that a calibration was made of, and how it was cut.

    wanted_tokens: how many were asked for; a shorter text gives fewer. fingerprint: sha256 of all token ids, in the
    order of the parts.
    """

    source: str
    window_tokens: int = Field(gt=0)
    scoring_tokens: int
    ranking_tokens: int
    held_out_tokens: int
    wanted_tokens: int
    bos: bool
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class Calibration:
    """Calibration text in its three parts.

    scoring: boundary states and scores come from it. ranking: candidates are measured on it. held_out: only the final
    figure of quality is measured on it.
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
    scattered: bool = False,
) -> Calibration:
    """Read a text and cut it into windows of about the tokens asked for, at least one window a part.

    model: needed for `self` only. scattered: draw passages from all over a long file, not its beginning.
    A text shorter than asked for first shrinks the ranking part, to LEAST_RANKING_SHARE times the scoring part; then
    all parts shrink in proportion. Raises UserError for a text of under three windows.
    """
    wanted = [windows_for(tokens, window_tokens) for tokens in (scoring_tokens, ranking_tokens, held_out_tokens)]
    if source == SELF:
        if model is None:
            raise ValueError("sampling text from the model needs the model")
        tokens = sample_windows(model, tokenizer, windows=sum(wanted), window_tokens=window_tokens, seed=seed)
        counts, name, bos = wanted, SELF, start_of_sampled(tokenizer) is not None
    else:
        text = text_source(source, seed=seed, tokenizer=tokenizer)
        bos = begins_with_bos(tokenizer)
        rows = _passages(text, tokenizer, sum(wanted), window_tokens - int(bos), seed) if scattered else None
        if rows is None:
            rows = _beginning(text, tokenizer, sum(wanted), window_tokens)
        tokens = with_bos(rows, tokenizer) if bos else rows
        counts, name = _shrink(wanted, len(tokens)), text.name
    return _calibration(
        torch.split(tokens, counts), name, wanted_tokens=sum(wanted) * window_tokens, bos=bos, seed=seed
    )


def load_mixture(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    window_tokens: int,
    scoring_tokens: int,
    ranking_tokens: int,
    held_out_tokens: int,
    seed: int,
    model: Any = None,
    scattered: bool = False,
) -> Calibration:
    """Read several texts, each `TEXT` or `TEXT=WEIGHT`; each gives its share of every part, one window at least.

    The rest is as in `load_calibration`, which one text alone is left to.
    """
    sources = parse_sources(texts)
    total = sum(source.weight for source in sources)
    cut: dict[WeightedSource, Calibration] = {}
    for source in sorted(sources, key=lambda source: source.name == SELF):  # sampling comes last: a file may be gone
        scoring, ranking, held_out = (
            round(tokens * source.weight / total) for tokens in (scoring_tokens, ranking_tokens, held_out_tokens)
        )
        cut[source] = load_calibration(
            source.name,
            tokenizer,
            window_tokens=window_tokens,
            scoring_tokens=scoring,
            ranking_tokens=ranking,
            held_out_tokens=held_out,
            seed=seed,
            model=model,
            scattered=scattered,
        )
    mixed = [cut[source] for source in sources]
    if len(mixed) == 1:
        return mixed[0]
    described = [each.description for each in mixed]
    name = names_of([(text.source, source.weight) for text, source in zip(described, sources, strict=True)])
    by_part = zip(*((each.scoring, each.ranking, each.held_out) for each in mixed), strict=True)
    return _calibration(
        [_in_turns([windows.tokens for windows in same]) for same in by_part],
        name,
        wanted_tokens=sum(text.wanted_tokens for text in described),
        bos=all(text.bos for text in described),
        seed=seed,
    )


def _in_turns(texts: Sequence[Tensor]) -> Tensor:
    """Return the windows of several texts in one; they take turns, and end together."""
    counts = [len(windows) for windows in texts]
    return torch.stack([texts[source][number] for source, number in islice(turns(counts), sum(counts))])


def _calibration(parts: Sequence[Tensor], name: str, *, wanted_tokens: int, bos: bool, seed: int) -> Calibration:
    """Return the calibration of windows (n, window_tokens) to score on, to rank on and held out."""
    scoring, ranking, held_out = (
        Windows(part.contiguous(), f"{name}, {part_name} part") for part, part_name in zip(parts, PARTS, strict=True)
    )
    description = CalibrationDescription(
        source=name,
        window_tokens=scoring.tokens.shape[1],
        scoring_tokens=scoring.tokens.numel(),
        ranking_tokens=ranking.tokens.numel(),
        held_out_tokens=held_out.tokens.numel(),
        wanted_tokens=wanted_tokens,
        bos=bos,
        seed=seed,
        fingerprint=tokens_digest(torch.cat(list(parts))),
    )
    return Calibration(scoring, ranking, held_out, description)


def tokens_digest(tokens: Tensor) -> str:
    """Return the sha256 of token ids, whatever the machine's byte order."""
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()


def windows_for(tokens: int, window_tokens: int) -> int:
    """Return how many windows make about so many tokens."""
    return max(1, round(tokens / window_tokens))


def _beginning(source: TextSource, tokenizer: Any, windows: int, window_tokens: int) -> Tensor:
    """Return up to `windows` windows from the beginning of the text: (n, window_tokens), less one for a BOS."""
    body = window_tokens - int(begins_with_bos(tokenizer))
    if body < 1:
        raise UserError(f"pieces of {window_tokens} tokens hold nothing but the BOS token; ask for longer ones")
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
    return torch.tensor(ids[: count * body]).view(count, body)


def _passages(source: TextSource, tokenizer: Any, windows: int, body: int, seed: int) -> Tensor | None:
    """Return `windows` windows (n, body), each the beginning of a passage; None where the text has too few passages."""
    if not source.local:
        return None
    text = _read(source)
    first = tokenizer(text[:BATCH_CHARACTERS], add_special_tokens=False, verbose=False)["input_ids"]
    if not first:
        return None
    length = math.ceil(PASSAGE_MARGIN * body * len(text[:BATCH_CHARACTERS]) / len(first))
    places = len(text) // length
    if places < SCATTER_FROM * windows:
        return None
    order = np.random.default_rng(seed).permutation(places)
    rows: list[list[int]] = []
    with progress(f"reading {source.name}", windows, "passages") as advance:
        for start in range(0, places, PASSAGES_AT_ONCE):
            cut = [_whole_words(text[i * length : (i + 1) * length]) for i in order[start : start + PASSAGES_AT_ONCE]]
            tokenised = tokenizer(cut, add_special_tokens=False, verbose=False)["input_ids"]
            enough = [ids[:body] for ids in tokenised if len(ids) >= body][: windows - len(rows)]
            rows += enough
            advance(len(enough))
            if len(rows) == windows:
                return torch.tensor(rows)
    return None


def _read(source: TextSource) -> str:
    """Return the text, up to MOST_CHARACTERS."""
    pieces: list[str] = []
    size = 0
    with progress(f"reading {source.name}", MOST_CHARACTERS, "characters") as advance:
        for document in source.open():
            pieces.append(document[: MOST_CHARACTERS - size])
            advance(len(pieces[-1]) + 1)
            size += len(pieces[-1]) + 1
            if size >= MOST_CHARACTERS:
                break
    return "\n".join(pieces)


def _whole_words(passage: str) -> str:
    """Return the passage without the part of a word that it begins with."""
    head, space, rest = passage.partition(" ")
    return rest if space and len(head) < MOST_WORD else passage


def with_bos(windows: Tensor, tokenizer: Any) -> Tensor:
    """Return windows (n, tokens + 1): BOS, then each of `windows` (n, tokens)."""
    return torch.cat([torch.full((len(windows), 1), tokenizer.bos_token_id), windows], dim=1)


def begins_with_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer itself begins a text with BOS."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]


def start_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer itself puts before a text: BOS, or none."""
    return [tokenizer.bos_token_id] if begins_with_bos(tokenizer) else []


def _batches(documents: Iterable[str]) -> Iterable[list[str]]:
    """Yield documents in batches of about BATCH_CHARACTERS, empty ones left out: a tokenizer works on many at once."""
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


def _shrink(wanted: list[int], available: int) -> list[int]:
    """Return the windows of each part where only `available` are there: at least one each."""
    scoring, ranking, held_out = wanted
    least = min(ranking, LEAST_RANKING_SHARE * scoring)
    left = available - scoring - held_out
    if left >= least:
        return [scoring, min(ranking, left), held_out]
    whole = scoring + least + held_out
    ranking, held_out = (max(1, available * part // whole) for part in (least, held_out))
    held_out = min(held_out, available - 2)
    ranking = min(ranking, available - held_out - 1)  # one is left to score on
    return [available - ranking - held_out, ranking, held_out]
