"""Text as tokens on disk: nothing is lost, the held-out part is no part of training, and batches can be asked again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.training.corpus import Corpus, text_file, write_corpus
from mi_prun.errors import UserError

SENTENCES = [f"The {n}th of the birds sat on the {n * n % 17}th wire of the old line." for n in range(600)]
DOCUMENTS = [" ".join(SENTENCES[i : i + 20]) for i in range(0, 600, 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "birds.txt"
    text.write_text("\n\n\n".join(DOCUMENTS))
    write_corpus([text_file(str(text))], folder, vocabulary=320)
    return folder


def test_training_and_held_out_text_are_the_file_cut_in_two(folder: Path) -> None:
    corpus = Corpus(folder, 16)
    tokenizer, sizes = corpus.tokenizer, corpus.sizes
    train, held_out = (
        tokenizer.decode(np.fromfile(folder / name, dtype=np.uint16), skip_special_tokens=True)
        for name in ("train.bin", "held_out.bin")
    )
    assert train + held_out == "".join(DOCUMENTS)
    assert len(train) == sizes.train_characters
    assert len(held_out) == sizes.held_out_characters == round(0.05 * len("".join(DOCUMENTS)))


def test_each_window_comes_once_in_a_round_and_the_order_differs_between_rounds(folder: Path) -> None:
    corpus = Corpus(folder, 16)
    count = corpus.train_windows
    first, second = corpus.batch(0, count, seed=3), corpus.batch(count, count, seed=3)
    assert first.shape == (count, 16)
    assert (first[:, 0] == corpus.tokenizer.bos_token_id).all()
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert not torch.equal(first, second)
    across = corpus.batch(count - 2, 4, seed=3)
    assert torch.equal(across, torch.cat([first[-2:], second[:2]]))
    assert not torch.equal(corpus.batch(0, count, seed=4), first)


def test_windows_longer_than_the_text_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="less than one window of 100000"):
        Corpus(folder, 100_000)


def test_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n \n")
    with pytest.raises(UserError, match=r"no text in empty\.txt"):
        write_corpus([text_file(str(tmp_path / "empty.txt"))], tmp_path, vocabulary=320)
    with pytest.raises(UserError, match="no such file"):
        text_file(str(tmp_path / "none.txt"))
