"""The default estimator: the information about h_j that is left where h_i is read in its place.

A pruned model does not decode h_j from h_i. It hands h_i to blocks that go on reading it as if it were h_j. So what the
best decoder could make of h_i, which the other estimators measure, is too much: a block that rotates every state keeps
all of it, and dropping that block breaks the model. Under a decoder q that is given there is the bound of Barber and
Agakov (2003), `I(h_i ; y) >= H(y) + E log q(y | h_i)` ("mismatched" decoding; "usable" information, Xu et al. 2020).
Here the model gives the decoder:

- Reader r >= j is the norm in front of block r, or of the head. It sees the direction x = norm_r(h) of a state.
- y = x_j + e is x_j as it sees it, through white noise e. It takes what it is given for x_j: q(y | h_i) = N(y; x_i, e).
- So `|x_i - x_j|^2 / (2 noise)` nats per dimension are lost of what y tells of x_j itself: exactly (1 - rho) / noise,
  where rho is the cosine of x_i and x_j.
- What y tells of x_j itself is taken as `1/2 log(1 + 1 / noise)` nats per dimension. That holds for a white Gaussian
  x_j; for another one it is too much, so I(i, j) is no bound. Choices rest on what is lost: the constant cancels.
- I(i, j) is the mean of this constant less what is lost, over tokens and over the readers j..L. Where the first tokens
  of windows are attention sinks, their mean over the blocks j..L-1 is added. Every later token reads the sink, so it
  counts as much as all others together; a block that makes it or takes it away does not look like one that changes a
  single token. What the head makes of it nobody reads. A sink is told by its length: at some boundary it is over SINK
  times as long as the text's tokens.

What is lost is the energy of the change. So a run of blocks whose changes are independent costs as much as the same
blocks apart: this is the zero, and the unit, under which J compares runs with scattered blocks. The noise is a unit
only; no choice depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mi_prun.analysis.boundaries import Boundaries
from mi_prun.analysis.mutual_information import Estimator, check_states
from mi_prun.analysis.readers import Readers

SINK = 10
CHUNK_BYTES = 2**28  # of the states that a reader sees at once


@dataclass(frozen=True)
class Reading(Estimator):
    """Information that is left for later blocks, in nats per dimension: a constant less what is lost.

    It may be below 0. It is no bound: the constant is exact for white Gaussian states only.
    """

    noise: float = 1.0
    max_tokens: int = 1_024
    name: str = "reading"
    whole: bool = True

    @property
    def settings(self) -> dict[str, float]:
        return {}

    def least_tokens(self, dims: int) -> int:
        return 2

    def of(self, boundaries: Boundaries, seed: int = 0) -> Tensor:
        """Estimate the information of every segment, of the text's tokens and of sinks together."""
        text, first = boundaries.projections, boundaries.first
        check_states(text, self)
        information = self.read(text, boundaries.readers)
        if has_sinks(text, first):
            information = information + self.read(first, boundaries.readers, head=False)
        return information

    def read(self, states: Tensor, readers: Readers, *, head: bool = True) -> Tensor:
        """Return the mean information (L+1, L+1) of one kind of tokens, `states` (L+1, n, d).

        head: whether the head reads them too.
        """
        count, tokens, dims = states.shape
        cosines = torch.zeros(count, count, dtype=torch.float64)  # summed over tokens and readers
        for part in torch.split(states, max(1, CHUNK_BYTES // (4 * count * dims)), dim=1):
            by_token = part.transpose(0, 1)  # (n, L+1, d)
            for reader in range(count if head else count - 1):
                seen = readers.readings(reader, by_token[:, : reader + 1])
                cosines[: reader + 1, : reader + 1] += (seen @ seen.mT).sum(0, dtype=torch.float64).cpu()
        number = torch.arange(count)
        behind = (count if head else count - 1) - torch.maximum(number[:, None], number)
        cosine = torch.where(behind > 0, cosines / (tokens * behind), 1.0)
        # Exactly nothing is lost where nothing changed, in whatever order a processor sums.
        changed = torch.tensor([False, *(not torch.equal(a, b) for a, b in pairwise(states))])
        place = changed.cumsum(0)
        cosine[place[:, None] == place] = 1.0
        lost = (1 - cosine) / self.noise
        return torch.triu(0.5 * math.log1p(1 / self.noise) - lost)

    def _mi(self, states: Tensor, seed: int) -> Tensor:
        return self.read(states, Readers.plain(len(states), states.shape[2]))


def has_sinks(text: Tensor, first: Tensor) -> bool:
    """Tell whether first tokens are attention sinks; both are states (L+1, n, d)."""
    lengths = (torch.linalg.vector_norm(states, dim=-1).median(1).values for states in (first, text))
    of_first, of_text = lengths
    return bool((of_first > SINK * of_text).any())
