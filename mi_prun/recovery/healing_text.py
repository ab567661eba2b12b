"""Text to heal on, and text that the healed model is judged on, never the same.

Of each source the last part is held out: first what chooses the best state, then what the gate is measured on.
What stands before it is cut into passages, drawn in an order by the seed; each gives one window. Several sources take
turns by their weights. `self` is sampled from the dense model; it is the gate's second text where one source is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mi_prun.analysis.analysis import Analysis
from mi_prun.analysis.ranks import ALONE, Ranks
from mi_prun.errors import UserError
from mi_prun.settings import SELF
from mi_prun.text.calibration import Windows, begins_with_bos, tokens_digest, windows_for, with_bos
from mi_prun.text.self_text import rows_at_once, sample_windows
from mi_prun.text.text_source import text_source
from mi_prun.text.weighted_source import WeightedSource, names_of, turns

PASSAGE_MARGIN = 1.3  # a passage has about so many times the tokens of a window
LONG_PASSAGES = 4  # a passage of fewer tokens is read so many times as far
PROBE_CHARACTERS, PROBES = 100_000, 16
LEAST_CHARACTERS, SPARE = 1 << 24, 2.0  # read of a source: so many, and so many times what the tokens take
PASSAGES_AT_ONCE = 256
ONCE = 1.05  # times through a text; the last step may need a window more than there are
LEAST_HELD_OUT = 4  # windows, of text that was sampled for something else
SELF_TOKENS = 32_768  # sampled where no number of tokens is given
MANUAL, MANUAL_CHARACTERS = "Python's manual", 16  # characters a token, more than any tokenizer's mean
SELF_GATE_WINDOW = 128  # of `self` where it only judges: sampled side by side, short windows take a quarter of the time


@dataclass(frozen=True)
class SampledText:
    """Text of `self` that an analysis has sampled already, (windows, tokens) each: its scoring and ranking text to heal
    on, its held-out text to judge on.
    """

    healing: Tensor
    held_out: Tensor

    @staticmethod
    def of(analysis: Analysis) -> SampledText:
        """Return the text that an analysis sampled: scoring and ranking to heal on, held-out to judge on."""
        healing = np.concatenate([analysis.scoring, analysis.ranking])
        return SampledText(torch.from_numpy(healing).long(), torch.from_numpy(analysis.held_out).long())

    def cut(self, window_tokens: int) -> SampledText:
        """Return this text in windows of another length, which begin where they may."""

        def pieces(windows: Tensor) -> Tensor:
            whole = windows.shape[1] // window_tokens * window_tokens
            return windows[:, :whole].reshape(-1, window_tokens)

        return SampledText(pieces(self.healing), pieces(self.held_out))


@dataclass
class Supply:
    """The windows of one source, made as they are asked for. name: short, for records. whole: it has no more text."""

    name: str
    weight: float
    held_out: Tensor
    more: Callable[[int], Tensor]  # windows from the given place on; none where the text has ended
    windows: list[Tensor] = field(default_factory=list)
    place: int = 0
    ended: bool = False
    whole: bool = True

    def window(self, number: int) -> Tensor | None:
        """Window `number` (window_tokens,); None beyond the last one."""
        while number >= len(self.windows) and not self.ended:
            made = self.more(self.place)
            self.place += PASSAGES_AT_ONCE
            self.windows += made.unbind()
            self.ended = not len(made)
        return self.windows[number] if number < len(self.windows) else None


class HealingText:
    """Windows to heal on in a fixed order, and held-out ones by kind.

    validation: by source, in the order given. gate: the same, and one more where there is only one source: text that
    is sampled from the model, or Python's manual.
    check: refuses token ids that the model has no embedding for; all windows to heal on go through it.
    """

    def __init__(
        self, supplies: Sequence[Supply], validation_share: float, check: Callable[[Tensor], None] | None = None
    ) -> None:
        self.supplies = tuple(supplies)
        self._check = check
        self.validation, self.gate = [], []
        for supply in supplies:
            cut = max(1, round(len(supply.held_out) * validation_share))
            self.validation.append(Windows(supply.held_out[:cut], f"{supply.name}, validation part"))
            self.gate.append(Windows(supply.held_out[cut:], f"{supply.name}, held-out part"))
        self._order = turns([supply.weight for supply in supplies])
        self._turns: list[tuple[int, int]] = []  # of each window: source, and number in it

    @property
    def name(self) -> str:
        return names_of([(supply.name, supply.weight) for supply in self.supplies])

    @property
    def held_out_sha256(self) -> str:
        """The digest of the held-out windows: it tells text that was sampled anew, and came out otherwise."""
        kinds = (*self.validation, *self.gate)
        return sha256("".join(tokens_digest(kind.tokens) for kind in kinds).encode()).hexdigest()

    def windows(self, first: int, count: int) -> Tensor:
        """Return `count` windows from window `first` on: (count, window_tokens). A text that has ended begins again."""
        windows = torch.stack([self._window(number) for number in range(first, first + count)])
        if self._check is not None:
            self._check(windows)
        return windows

    def _window(self, number: int) -> Tensor:
        while len(self._turns) <= number:
            self._turns.append(next(self._order))
        source, place = self._turns[number]
        supply = self.supplies[source]
        window = supply.window(place)
        return supply.windows[place % len(supply.windows)] if window is None else window

    def repeated(self, windows: int) -> str | None:
        """Say how often the first `windows` go through the source that ended first; None where that is about once."""
        asked = [sum(1 for source, _ in self._turns[:windows] if source == i) for i in range(len(self.supplies))]
        times = [(n / len(s.windows), s) for n, s in zip(asked, self.supplies, strict=True) if s.ended and s.windows]
        most, supply = max(times, key=lambda pair: pair[0], default=(1.0, None))
        if supply is None or most < ONCE:
            return None
        more = "give more text" if supply.whole else "with --tokens as much of it is read as the training takes"
        return f"the training went {most:.1f} times through what was read of {supply.name}; {more}"

    def check_tokens(self, tokens: int, window_tokens: int) -> None:
        """Raises UserError where a source is shorter than its share of `tokens`."""
        total = sum(supply.weight for supply in self.supplies)
        for supply in self.supplies:
            needed = math.floor(tokens / window_tokens * supply.weight / total)
            if needed and supply.window(needed - 1) is None:
                raise UserError(
                    f"--tokens {tokens:,} takes {needed * window_tokens:,} of {supply.name}, which has "
                    f"{len(supply.windows) * window_tokens:,} beside what is held out; ask for less, or give more text"
                )


def load_healing_text(
    sources: Sequence[WeightedSource],
    tokenizer: Any,
    *,
    window_tokens: int,
    tokens: int | None,
    validation_tokens: int,
    gate_tokens: int,
    seed: int,
    model: Any,
    sampled: SampledText | None = None,
    check: Callable[[Tensor], None] | None = None,
    ranks: Ranks = ALONE,
) -> HealingText:
    """Read the sources. tokens: how many must be there; None: as many as time allows.

    model: for `self`, and for a second kind of text where there is one only. sampled: text of `self` to take where it
    is enough. check: see `HealingText`; held-out windows go through it here. ranks: rank 0 samples for all.
    """

    def sample(windows: int, window_tokens: int) -> Tensor:
        at_once = ranks.least(rows_at_once(model, window_tokens))  # sharded blocks run as often on each rank
        return ranks.from_first(
            lambda: sample_windows(
                model, tokenizer, windows=windows, window_tokens=window_tokens, seed=seed, at_once=at_once
            ),
            runs_model=True,
        )

    validation, gate = (windows_for(count, window_tokens) for count in (validation_tokens, gate_tokens))
    total = sum(source.weight for source in sources)
    supplies = []
    for source in sources:
        share = None if tokens is None else math.ceil(tokens * source.weight / total)
        if source.name == SELF:
            held_out = validation + gate
            there = _taken(source, window_tokens, share, held_out, sampled)
            supplies.append(there or _sampled(source, window_tokens, share, held_out, sample))
        else:
            supplies.append(_read(source, tokenizer, window_tokens, share, validation + gate, seed))
    text = HealingText(supplies, validation / (validation + gate), check)
    if len(sources) == 1:  # another kind, for the gate alone
        if sources[0].name != SELF and model is not None:
            short = min(window_tokens, SELF_GATE_WINDOW)
            more = sample(windows_for(gate_tokens, short), short)
            text.gate.append(Windows(more, f"{SELF}, held-out part"))
        else:
            text.gate.append(Windows(_manual(tokenizer, gate, window_tokens), MANUAL))
    if check is not None:
        for kind in (*text.validation, *text.gate):
            check(kind.tokens)
    return text


def _taken(
    source: WeightedSource, window_tokens: int, tokens: int | None, held_out: int, sampled: SampledText | None
) -> Supply | None:
    """The text that is there; None where it is not enough."""
    if sampled is None:
        return None
    cut = sampled.cut(window_tokens)
    if len(cut.held_out) < LEAST_HELD_OUT or cut.healing.numel() < (tokens or 1):
        return None
    windows = cut.healing
    return Supply(SELF, source.weight, cut.held_out[:held_out], lambda place: windows[place : place + PASSAGES_AT_ONCE])


def _sampled(
    source: WeightedSource, window_tokens: int, tokens: int | None, held_out: int, sample: Callable[[int, int], Tensor]
) -> Supply:
    count = math.ceil((SELF_TOKENS if tokens is None else tokens) / window_tokens)
    sampled = sample(held_out + count, window_tokens)
    rest = sampled[held_out:]
    return Supply(SELF, source.weight, sampled[:held_out], lambda place: rest[place : place + PASSAGES_AT_ONCE])


def _read(
    source: WeightedSource, tokenizer: Any, window_tokens: int, tokens: int | None, held_out: int, seed: int
) -> Supply:
    named = text_source(source.name, seed=seed, tokenizer=tokenizer)
    bos = begins_with_bos(tokenizer)
    body = window_tokens - int(bos)
    per_token = 0.0
    pieces: list[str] = []
    size, most = 0, float(LEAST_CHARACTERS)
    documents = named.open()
    for document in documents:
        pieces.append(document)
        size += len(document) + 1
        if not per_token and size >= PROBE_CHARACTERS:
            per_token = _characters_per_token("\n".join(pieces), tokenizer)
            most = max(most, SPARE * per_token * ((tokens or 0) + held_out * window_tokens))
        if size >= most:
            break
    whole = next(documents, None) is None
    text = "\n".join(pieces)
    length = math.ceil(PASSAGE_MARGIN * body * _characters_per_token(text, tokenizer))
    cut = len(text) - math.ceil(held_out * 1.5 + 1) * length  # the last passages may be too short

    def windows_at(starts: Sequence[int], end: int) -> Tensor:
        """(n, window_tokens): one from each place. Where characters are many a token, it reaches into the next passage,
        but not beyond `end`.
        """
        rows: dict[int, list[int]] = {}
        for reach in (length, LONG_PASSAGES * length):
            left = [start for start in starts if start not in rows]
            passages = [text[start : min(start + reach, end)] for start in left]
            ids = tokenizer(passages, add_special_tokens=False, verbose=False)["input_ids"] if left else []
            rows |= {start: row[:body] for start, row in zip(left, ids, strict=True) if len(row) >= body}
        made = torch.tensor([rows[start] for start in starts if start in rows], dtype=torch.long).view(-1, body)
        return with_bos(made, tokenizer) if bos else made

    judged = windows_at(range(max(0, cut), len(text), length), len(text))[:held_out]
    order = np.random.default_rng(seed).permutation(max(0, cut) // length)

    def more(place: int) -> Tensor:
        return windows_at([int(number) * length for number in order[place : place + PASSAGES_AT_ONCE]], cut)

    supply = Supply(named.name, source.weight, judged, more, whole=whole)
    if len(judged) < held_out or supply.window(0) is None:
        raise UserError(
            f"--calibration {named.name} has {len(text):,} characters; {held_out} windows of {window_tokens} tokens "
            "are held out of it and something must be left to heal on: give more text or a smaller --window"
        )
    return supply


def _manual(tokenizer: Any, windows: int, window_tokens: int) -> Tensor:
    """Return the first windows of the reference manual that Python carries with it: English prose and code."""
    from pydoc_data.topics import topics

    bos = begins_with_bos(tokenizer)
    body = window_tokens - int(bos)
    text = "\n".join(topics[name] for name in sorted(topics))[: MANUAL_CHARACTERS * windows * window_tokens]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    count = min(windows, len(ids) // body)
    made = ids[: count * body].view(count, body)
    return with_bos(made, tokenizer) if bos else made


def _characters_per_token(text: str, tokenizer: Any) -> float:
    """The mean over probes from all over the text."""
    size = PROBE_CHARACTERS // PROBES
    step = max(size, len(text) // PROBES)
    probes = [text[start : start + size] for start in range(0, max(1, len(text)), step)]
    ids = tokenizer(probes, add_special_tokens=False, verbose=False)["input_ids"]
    return max(1.0, sum(map(len, probes)) / max(1, sum(map(len, ids))))
