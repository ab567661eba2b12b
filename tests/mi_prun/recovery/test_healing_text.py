from __future__ import annotations

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.healing_text import SampledText, load_healing_text
from mi_prun.text.weighted_source import parse_sources


@pytest.fixture(scope="module")
def tokenizer(reference):
    return open_model(reference).tokenizer


def load(sources, tokenizer, **changes):
    options = {"window_tokens": 32, "tokens": 2_048, "validation_tokens": 128, "gate_tokens": 256, "seed": 0}
    return load_healing_text(parse_sources(sources), tokenizer, **(options | changes), model=None)


def rows(windows):
    return {tuple(row) for row in windows.tolist()}


def test_what_is_healed_on_is_never_judged_on(manual, harbour, tokenizer):
    text = load([str(manual), str(harbour)], tokenizer)
    healed = rows(text.windows(0, 64))
    validation, gate = (set().union(*(rows(kind.tokens) for kind in each)) for each in (text.validation, text.gate))
    assert not healed & validation
    assert not healed & gate
    assert not validation & gate
    assert [len(kind.tokens) for kind in (*text.validation, *text.gate)] == [4, 4, 8, 8]


def test_sources_take_turns_by_their_weights(manual, harbour, tokenizer):
    text = load([f"{manual}=3", str(harbour)], tokenizer)
    text.windows(0, 40)
    assert [supply.name for supply in text.supplies] == ["manual.txt", "harbour.txt"]
    assert [sum(source == i for source, _ in text._turns[:40]) for i in (0, 1)] == [30, 10]
    assert text.name == "manual.txt (3), harbour.txt (1)"


def test_windows_are_the_same_wherever_they_are_asked_from(manual, harbour, tokenizer):
    one, two = (load([str(manual), str(harbour)], tokenizer) for _ in range(2))
    assert two.windows(20, 5).equal(one.windows(0, 25)[20:])
    other = load([str(manual), str(harbour)], tokenizer, seed=1)
    assert not other.windows(0, 25).equal(one.windows(0, 25))


def test_a_text_that_has_ended_begins_again(harbour, manual, tokenizer):
    text = load([str(harbour), str(manual)], tokenizer, tokens=None)
    supply = text.supplies[0]
    text.windows(0, 2_500)
    assert supply.ended
    count = len(supply.windows)
    assert text.windows(2 * count, 1).equal(text.windows(0, 1))


def test_only_the_windows_trained_on_count_as_gone_through(harbour, manual, tokenizer):
    text = load([str(harbour), str(manual)], tokenizer, tokens=None)
    text.windows(0, 2_500)  # of the closed form
    assert text.repeated(100) is None
    once = 2 * len(text.supplies[0].windows)
    assert text.repeated(once + 2) is None  # a window more, to fill the last step
    times = 1_250 / len(text.supplies[0].windows)
    assert text.repeated(2_500) == (
        f"the training went {times:.1f} times through what was read of harbour.txt; give more text"
    )


def test_of_a_text_that_was_not_read_to_its_end_there_is_no_more_to_give(harbour, manual, tokenizer, monkeypatch):
    monkeypatch.setattr("mi_prun.recovery.healing_text.LEAST_CHARACTERS", 1)
    monkeypatch.setattr("mi_prun.recovery.healing_text.PROBE_CHARACTERS", 16)
    text = load([str(manual), str(harbour)], tokenizer, tokens=None)
    assert [supply.whole for supply in text.supplies] == [False, True]  # harbour.txt is one document
    text.windows(0, 5_000)
    assert "of manual.txt; with --tokens as much of it is read as the training takes" in text.repeated(5_000)


def test_tokens_without_an_embedding_are_refused_where_they_are_asked_for(harbour, manual, tokenizer):
    def check(tokens):
        if (tokens >= most).any():
            raise UserError(f"token {int(tokens.max())}")

    most = 5
    with pytest.raises(UserError, match="token"):
        load([str(harbour), str(manual)], tokenizer, check=check)
    most = 4_096
    text = load([str(harbour), str(manual)], tokenizer, check=check)
    text.windows(0, 2)
    most = 5
    with pytest.raises(UserError, match="token"):
        text.windows(0, 2)


def test_a_text_that_is_shorter_than_asked_for(harbour, manual, tokenizer):
    text = load([str(harbour), str(manual)], tokenizer)
    text.check_tokens(4_096, 32)
    with pytest.raises(UserError, match=r"--tokens 90,000 takes 44,992 of harbour.txt, which has [\d,]+ beside"):
        text.check_tokens(90_000, 32)


def test_a_text_that_has_nothing_left_beside_what_is_held_out(tmp_path, tokenizer):
    short = tmp_path / "short.txt"
    short.write_text("It rained on the sea all day. " * 20)
    with pytest.raises(UserError, match=r"short\.txt has 600 characters; 12 windows of 32 tokens are held out of it"):
        load([str(short), str(short).replace("short", "other")], tokenizer)


def test_text_that_becomes_wordier_keeps_its_passages(manual, tmp_path, tokenizer):
    """Half of it has many tokens for its characters, half has few; windows come from both."""
    prose = manual.read_text()
    half = len(prose) // 2
    text = tmp_path / "both.txt"
    text.write_text("".join(f"{ord(letter):x} {letter} | " for letter in prose[: half // 4]) + prose[half:])
    windows = load([str(text), str(manual)], tokenizer, tokens=None)
    supply = windows.supplies[0]
    while supply.window(len(supply.windows)) is not None:
        pass
    passages = len(text.read_text()) / (1.3 * 32 * _characters(text.read_text(), tokenizer))
    assert len(supply.windows) > 0.8 * passages - 1.5 * 12 - 1


def _characters(text, tokenizer):
    return len(text) / len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def test_text_that_an_analysis_has_sampled_is_not_sampled_again(tokenizer):
    ids = torch.arange(2 * 130 * 20).view(2, 20, 130)
    text = load(["self"], tokenizer, tokens=1_024, sampled=SampledText(ids[0], ids[1]))
    assert text.windows(0, 5)[3:].tolist() == [list(range(96, 128)), list(range(130, 162))]
    assert text.gate[0].tokens[0].tolist() == list(range(2_730, 2_762))
    (_, manual) = text.gate  # text that is sampled is one kind alone
    assert manual.text == "Python's manual"
    assert manual.tokens.shape == text.gate[0].tokens.shape
    assert "assert" in tokenizer.decode(manual.tokens.flatten())  # its first topic


def test_one_text_and_no_model_to_sample_from_have_a_second_kind_too(manual, tokenizer):
    assert [kind.text for kind in load([str(manual)], tokenizer).gate] == [
        "manual.txt, held-out part",
        "Python's manual",
    ]


def test_sampled_text_that_is_too_short_is_left(tokenizer):
    with pytest.raises(AttributeError):  # it turns to the model, and there is none
        load(["self"], tokenizer, tokens=1_024, sampled=SampledText(torch.zeros(3, 32), torch.zeros(40, 32)))
