"""The end of a window repeats its beginning; nothing else changes."""

from __future__ import annotations

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.text.recall import check_recall, repeating

WINDOWS = torch.arange(2 * 17).view(2, 17)


def test_the_end_repeats_the_beginning_and_the_rest_stays() -> None:
    repeated = repeating(WINDOWS, 1 / 4, bos=False)
    assert torch.equal(repeated[:, :13], WINDOWS[:, :13])
    assert torch.equal(repeated[:, 13:], WINDOWS[:, :4])


def test_a_token_before_the_text_is_not_repeated() -> None:
    repeated = repeating(WINDOWS, 1 / 4, bos=True)
    assert torch.equal(repeated[:, :13], WINDOWS[:, :13])
    assert torch.equal(repeated[:, 13:], WINDOWS[:, 1:5])


def test_the_windows_given_stay_as_they_are() -> None:
    before = WINDOWS.clone()
    repeating(WINDOWS, 1 / 2, bos=False)
    assert torch.equal(WINDOWS, before)


def test_windows_too_short_for_it_stay_as_they_are() -> None:
    assert torch.equal(repeating(WINDOWS[:, :7], 1 / 8, bos=False), WINDOWS[:, :7])
    assert torch.equal(repeating(WINDOWS, 0.0, bos=False), WINDOWS)


@pytest.mark.parametrize("share", [-0.1, 0.51, float("nan")])
def test_a_share_that_cannot_repeat_is_refused_in_one_line(share: float) -> None:
    with pytest.raises(UserError, match=f"--recall is the share of a window .* 0 to 0.5, got {share}"):
        check_recall(share)
    check_recall(0.0)
    check_recall(0.5)
