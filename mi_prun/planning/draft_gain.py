"""What a draft is expected to gain.

The pruned model drafts n tokens, the dense model checks them in one pass. Let a be the chance that a drafted token is
accepted. A pass yields `(1 - a^(n+1)) / (1 - a)` tokens on average (Leviathan et al. 2023, arXiv 2211.17192, eq. 1).
It costs n draft steps and one dense step. c is the cost of a draft step over that of a dense step:

    speed-up(n) = (1 - a^(n+1)) / ((1 - a) (n c + 1))
"""

from __future__ import annotations

MAX_TOKENS = 8


def expected_length(acceptance: float, tokens: int) -> float:
    """Return how many tokens a pass yields for n = `tokens`: those accepted, and the dense model's own one.

    >>> expected_length(0.5, 2)
    1.75
    """
    return sum(acceptance**accepted for accepted in range(tokens + 1))


def expected_speedup(acceptance: float, relative_cost: float, tokens: int) -> float:
    """Return speed-up(n) for n = `tokens`, by the formula above.

    >>> round(expected_speedup(0.8, 0.2, 3), 3)
    1.845
    """
    return expected_length(acceptance, tokens) / (tokens * relative_cost + 1)


def best_tokens(acceptance: float, relative_cost: float) -> int:
    """Return the number of drafted tokens with the best expected speed-up."""
    return max(range(1, MAX_TOKENS + 1), key=lambda n: expected_speedup(acceptance, relative_cost, n))
