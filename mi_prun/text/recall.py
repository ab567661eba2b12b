"""Recall: does a model still find again what a window said before?

Some blocks of a real model copy: what followed a word earlier in the text is predicted where the word comes again
(induction heads; Olsson et al. 2022, arXiv 2209.11895). Ordinary passages ask for it too seldom to show in a mean loss.
Tasks ask for it all the time. A window whose end repeats its beginning asks for it at each token of its end.
"""

from __future__ import annotations

from torch import Tensor

from mi_prun.errors import UserError

MOST = 1 / 2  # of a window


def check_recall(share: float) -> None:
    """Refuse a share of a window that cannot repeat the rest. Raises UserError."""
    if not 0 <= share <= MOST:  # NaN is not
        raise UserError(f"--recall is the share of a window that repeats its beginning, 0 to {MOST}, got {share}")


def repeating(windows: Tensor, share: float, *, bos: bool) -> Tensor:
    """Return windows (n, tokens) whose last `share` repeats their beginning; too short ones stay as they are.

    bos: each window begins with a token that is no text, and is not repeated.
    """
    first, length = int(bos), windows.shape[1]
    count = int(share * (length - first))
    if not count:
        return windows
    repeated = windows.clone()
    repeated[:, length - count :] = windows[:, first : first + count]
    return repeated
