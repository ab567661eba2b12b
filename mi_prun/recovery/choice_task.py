"""One choice task, asked of the dense model, of the pruned one, and of the healed one.

Perplexity says little of what a model can still answer. A choice's score is the sum of the log-probabilities of its
tokens behind the question, as lm-eval has it (`acc`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mi_prun.recovery.capitals import capitals
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.text.calibration import start_tokens

ITEMS = 24
ROWS_AT_ONCE = 4


class ChoiceTask:
    """A few items, asked as often as one likes. What does not change is run once and kept."""

    name = "capitals"

    def __init__(self, weights: SharedWeights, tokenizer: Any, items: int = ITEMS) -> None:
        self.weights = weights
        every = capitals()
        self.items = every[:: max(1, len(every) // items)][:items]
        start = start_tokens(tokenizer)
        self._rows: list[tuple[list[int], int]] = []  # tokens, and how many of them are the question
        for item in self.items:
            question = start + tokenizer(item["query"], add_special_tokens=False)["input_ids"]
            for choice in item["choices"]:
                whole = start + tokenizer(f"{item['query']} {choice}", add_special_tokens=False)["input_ids"]
                self._rows.append((whole, min(len(question), len(whole) - 1)))
        longest = max(len(row) for row, _ in self._rows)
        # Padded behind the end, where a causal model sees nothing of it.
        self.tokens = torch.tensor([row + [row[-1]] * (longest - len(row)) for row, _ in self._rows])
        self._before: Tensor | None = None

    @torch.no_grad()
    def dense(self) -> list[bool]:
        """Return for each item whether the dense model chooses right."""
        weights = self.weights
        self._before = weights.run(weights.embed(self.tokens), range(weights.first))
        return self._right(weights.run(self._before, range(weights.first, weights.model.num_blocks)))

    @torch.no_grad()
    def student(self) -> list[bool]:
        """Return for each item whether the student chooses right, as it stands. `dense` comes first."""
        if self._before is None:
            raise ValueError("the dense model is asked first")
        with self.weights.student():
            return self._right(self.weights.run(self._before, self.weights.trained_blocks))

    def _right(self, states: Tensor) -> list[bool]:
        scores: list[float] = []
        for place in range(0, len(states), ROWS_AT_ONCE):
            part = slice(place, place + ROWS_AT_ONCE)
            logits = self.weights.model.logits(states[part, :-1].to(self.weights.model.dtype)).float()
            targets = self.tokens[part, 1:, None].to(logits.device)
            said = torch.log_softmax(logits, -1).gather(-1, targets)[..., 0]
            scores += [
                float(line[question - 1 : len(row) - 1].sum())
                for line, (row, question) in zip(said, self._rows[part], strict=True)
            ]
        return _chosen(scores, [(len(item["choices"]), item["gold"]) for item in self.items])


def _chosen(scores: Sequence[float], items: Sequence[tuple[int, int]]) -> list[bool]:
    """Tell for each item, of so many choices, whether the right one has the highest score."""
    right, place = [], 0
    for count, gold in items:
        own = scores[place : place + count]
        right.append(own.index(max(own)) == gold)
        place += count
    return right
