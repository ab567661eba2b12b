"""Keep training text as tokens on disk: it is read and tokenised once, and every later run maps it into memory.

A corpus folder holds `tokenizer/`, `train.bin` and `held_out.bin` (token ids; each document is closed by EOS) and
`corpus.json`. The held-out part is the end of each file, in proportion to its length. It is cut off as text: neither
the tokenizer's training nor the model's sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_prun.artefact import Record
from mi_prun.console import Advance, progress
from mi_prun.errors import UserError
from mi_prun.files import sha256_of, sync, write_text
from mi_prun.text.calibration import begins_with_bos, with_bos
from mi_prun.text.text_source import path_and_field, text_source

TOKENIZER, TRAIN, HELD_OUT, SIZES = "tokenizer", "train.bin", "held_out.bin", "corpus.json"
BOS, EOS = "<s>", "</s>"
HELD_OUT_SHARE, HELD_OUT_CHARACTERS = 0.05, 250_000  # the lesser; the latter is about 65,000 tokens
TOKENIZER_CHARACTERS = 30_000_000  # more text hardly changes the merges of a small vocabulary
BATCH_DOCUMENTS = 64


class TextIdentity(Record):
    """What tells a text file from others.

    name: of the file, without its folder, and the field after it if one is named. num_bytes, sha256: of the file as it
    lies on the disk.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class TextFile:
    """A text file. source: as `text_source` takes it."""

    source: str
    identity: TextIdentity

    def documents(self) -> Iterator[str]:
        """Yield documents without the blanks around them; empty ones are left out."""
        return (document for document in map(str.strip, text_source(self.source).open()) if document)


class CorpusSizes(Record):
    """The sizes of a corpus: sums over the files, of documents without the blanks around them.

    vocabulary: entries of the tokenizer. Tokens count EOS, not BOS.
    """

    vocabulary: int
    documents: int
    train_characters: int
    held_out_characters: int
    train_tokens: int
    held_out_tokens: int


def text_file(source: str) -> TextFile:
    """Open a text file. Raises UserError for what is not one; a data set of the hub is none."""
    path, field = path_and_field(source)
    if not path.is_file():
        raise UserError(f"text {source}: no such file")
    text_source(source)
    try:
        name = f"{path.name}:{field}" if field else path.name
        return TextFile(source, TextIdentity(name=name, num_bytes=path.stat().st_size, sha256=sha256_of(path)))
    except OSError as error:
        raise UserError(f"text {source} cannot be read: {error.strerror}") from error


class Corpus:
    """Windows of `window_tokens` tokens as calibration makes them: BOS first, where the tokenizer begins a text with
    it.
    """

    def __init__(self, folder: Path, window_tokens: int) -> None:
        from transformers import AutoTokenizer

        self.sizes = CorpusSizes.model_validate_json((folder / SIZES).read_bytes())
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
        self.bos = begins_with_bos(self.tokenizer)
        self._train = self._bodies(folder / TRAIN, window_tokens)
        self._held_out = self._bodies(folder / HELD_OUT, window_tokens)
        self._order: tuple[object, NDArray[np.int64]] = (None, np.empty(0, dtype=np.int64))
        for part, bodies, tokens in (
            ("training", self._train, self.sizes.train_tokens),
            ("held-out", self._held_out, self.sizes.held_out_tokens),
        ):
            if not len(bodies):
                raise UserError(
                    f"too little text: its {part} part has {tokens:,} tokens, less than one window of {window_tokens}; "
                    "give more text or a smaller --context"
                )

    def _bodies(self, path: Path, window_tokens: int) -> NDArray[Any]:
        """Return the windows of a file without their BOS. What is left at its end is not used."""
        body = window_tokens - int(self.bos)
        ids = np.memmap(path, dtype=_dtype(self.sizes.vocabulary), mode="r")
        return ids[: len(ids) // body * body].reshape(-1, body)

    def _windows(self, bodies: NDArray[Any]) -> Tensor:
        rows = torch.from_numpy(bodies.astype(np.int64))
        return with_bos(rows, self.tokenizer) if self.bos else rows

    @property
    def train_windows(self) -> int:
        """The number of windows to train on."""
        return len(self._train)

    def batch(self, first: int, count: int, seed: int) -> Tensor:
        """Return windows first .. first + count of an endless row: every window once, in a new order each time round.

        (count, window_tokens) int64; the same whenever it is asked for.
        """
        rounds, places = np.divmod(np.arange(first, first + count), self.train_windows)
        chosen = [self._permutation(int(r), seed)[places[rounds == r]] for r in np.unique(rounds)]
        return self._windows(self._train[np.concatenate(chosen)])

    def _permutation(self, epoch: int, seed: int) -> NDArray[np.int64]:
        if self._order[0] != (epoch, seed):
            self._order = (epoch, seed), np.random.default_rng([seed, epoch]).permutation(self.train_windows)
        return self._order[1]

    def held_out(self) -> Tensor:
        """Return the held-out windows: (windows, window_tokens) int64."""
        return self._windows(self._held_out)


def write_corpus(texts: Sequence[TextFile], folder: Path, *, vocabulary: int) -> None:
    """Fill `folder` with a corpus. The tokenizer has at most `vocabulary` entries. Raises UserError where there is no
    text.
    """
    lengths = [sum(len(document) for document in text.documents()) for text in texts]
    total = sum(lengths)
    if not total:
        raise UserError(f"no text in {', '.join(text.identity.name for text in texts)}")
    share = min(HELD_OUT_SHARE, HELD_OUT_CHARACTERS / total)
    ends = [length - round(length * share) for length in lengths]  # of the training part, in characters
    train = [(text, 0, end) for text, end in zip(texts, ends, strict=True)]
    held_out = [(text, end, length) for text, end, length in zip(texts, ends, lengths, strict=True)]

    part = min(1.0, TOKENIZER_CHARACTERS / total)
    sample = [(text, 0, round(end * part)) for text, _, end in train]
    with progress("training the tokenizer", sum(end for *_, end in sample), "characters") as advance:
        made = _train_tokenizer(_counted(_cut(sample), advance), vocabulary)
    entries = max(made.get_vocab().values()) + 1
    made.save_pretrained(folder / TOKENIZER)
    with progress("tokenising", total, "characters") as advance:
        documents, train_tokens = _tokenise(_counted(_cut(train), advance), made, entries, folder / TRAIN)
        last, held_out_tokens = _tokenise(_counted(_cut(held_out), advance), made, entries, folder / HELD_OUT)
    sizes = CorpusSizes(
        vocabulary=entries,
        documents=documents + last,
        train_characters=sum(ends),
        held_out_characters=total - sum(ends),
        train_tokens=train_tokens,
        held_out_tokens=held_out_tokens,
    )
    write_text(folder / SIZES, sizes.model_dump_json(indent=2) + "\n")


def _cut(parts: Iterable[tuple[TextFile, int, int]]) -> Iterator[str]:
    """Yield what lies from character `begin` to `end` of each file. A document over such a place is cut there."""
    for text, begin, end in parts:
        place = 0
        for document in text.documents():
            if place >= end:
                break
            if piece := document[max(0, begin - place) : end - place]:
                yield piece
            place += len(document)


def _counted(documents: Iterable[str], advance: Advance) -> Iterator[str]:
    for document in documents:
        yield document
        advance(len(document))


def _train_tokenizer(documents: Iterator[str], vocabulary: int) -> Any:
    """Train a byte-level BPE tokenizer that begins a text with BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def _dtype(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def _tokenise(documents: Iterator[str], tokenizer: Any, entries: int, out: Path) -> tuple[int, int]:
    """Write the ids, and return the numbers of documents and tokens."""
    count = tokens = 0
    with out.open("wb") as file:
        while batch := list(islice(documents, BATCH_DOCUMENTS)):
            for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
                np.array([*ids, tokenizer.eos_token_id], dtype=_dtype(entries)).tofile(file)
                tokens += len(ids) + 1
            count += len(batch)
    sync(out)
    return count, tokens
