"""Mutual information between boundary states, in nats: the protocol of estimators, and three of them.

MI of a deterministic continuous map is infinite. So `I(h_i ; h_j + e)` is estimated: the later state is observed
through isotropic Gaussian noise e. The noise's variance is `noise` times the mean variance per dimension of h_j. It is
relative to h_j because a block reads its input through a norm: what counts is what can be told apart at a given
relative precision. (Noise scaled to h_i would reward segments that only amplify.) The noise makes MI finite, and gives
J a natural zero: `I(h_i ; h_i + e)`, what a segment that changes nothing would keep.

Every estimator takes projections of the boundary states, `states` (L+1, n, p): L+1 boundaries, n tokens, p dimensions.
It gives a matrix (L+1, L+1): entry [i, j], i <= j, is the estimate; entries below the diagonal are 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mi_prun.analysis.boundaries import Boundaries, made_by
from mi_prun.errors import UserError

NOISE = 1e-2
ROUNDING = 1e-6  # share of the mean variance below which a float32 covariance is rounding
STILL = 1e-6  # spread of a state, over its largest magnitude, below which it is float32 rounding
DPI_TOLERANCE_NATS = 1e-3


class Estimator(ABC):
    """An estimator of the mutual information of every pair of boundary states.

    max_tokens: how many tokens are worth giving; the cost of `ksg` and `renyi` grows with its square.
    whole: whether it takes states as they are, not projections.
    """

    name: str
    noise: float
    max_tokens: int
    whole: bool = False

    @property
    @abstractmethod
    def settings(self) -> dict[str, float]:
        """The settings it has beside projection, noise and seed; the analysis records them."""

    @abstractmethod
    def least_tokens(self, dims: int) -> int:
        """Return how many tokens states of `dims` dimensions need; with fewer any estimate is noise."""

    def of(self, boundaries: Boundaries, seed: int = 0) -> Tensor:
        """Estimate MI (L+1, L+1), nats in float64, of what the pass gave."""
        return self.segment_mi(boundaries.projections, seed)

    def segment_mi(self, states: Tensor, seed: int = 0) -> Tensor:
        """Estimate MI (L+1, L+1), nats in float64, of `states` (L+1, n, p).

        A state that equals the one before it bit for bit gets that one's row and column. So a block that changes
        nothing costs exactly 0 nats, in whatever order a processor sums.
        """
        check_states(states, self)
        changed = torch.tensor([True, *(not torch.equal(before, after) for before, after in pairwise(states))])
        mi = self._mi(states if changed.all() else states[changed.to(states.device)], seed)
        same_as = changed.cumsum(0) - 1
        return torch.triu(mi[same_as][:, same_as])

    @abstractmethod
    def _mi(self, states: Tensor, seed: int) -> Tensor:
        """Estimate the MI of checked states, of which no two neighbours are equal."""


@dataclass(frozen=True)
class Gaussian(Estimator):
    """MI by canonical correlations: `MI = -1/2 sum_c log(1 - rho_c^2)`, exact where the states are jointly Gaussian.

    With `A = S_xx^-1/2 S_xy S_yy^-1/2`, `sum log(1 - rho^2) = log det(I - A A^T)`: one Cholesky factor a pair, no SVD.
    The bias is about p^2 / (2 n) nats upwards, the same for every pair of one analysis.
    """

    noise: float = NOISE
    max_tokens: int = 65_536
    name: str = "gaussian"

    @property
    def settings(self) -> dict[str, float]:
        return {}

    def least_tokens(self, dims: int) -> int:
        return 2 * dims

    def _mi(self, states: Tensor, seed: int) -> Tensor:
        count, tokens, dims = states.shape
        # All covariances from one product: entry [i, a, j, b] is of dimension a of h_i and dimension b of h_j.
        centred = (states - states.mean(1, keepdim=True)).float().transpose(1, 2).flatten(0, 1)  # ((L+1) p, n)
        covariance = (centred @ centred.T).double().view(count, dims, count, dims) / tokens
        own = torch.stack([covariance[i, :, i] for i in range(count)])
        whiten = _whitening(own)
        # The observed state h_j + e: noise on its covariance, none on the cross-covariance.
        noise = max(self.noise, ROUNDING) * own.diagonal(dim1=1, dim2=2).mean(1)
        identity = torch.eye(dims, dtype=torch.float64, device=states.device)
        observed = torch.linalg.cholesky(own + noise[:, None, None] * identity)
        result = torch.zeros(count, count, dtype=torch.float64, device=states.device)
        for j in range(count):
            cross = covariance[: j + 1, :, j]  # (j + 1, p, p)
            a = torch.linalg.solve_triangular(observed[j], (whiten[: j + 1] @ cross).mT, upper=False).mT
            factors, info = torch.linalg.cholesky_ex(identity * (1 + 1e-12) - a @ a.mT)
            result[: j + 1, j] = -factors.diagonal(dim1=1, dim2=2).log().sum(1)
            for i in info.nonzero()[:, 0]:
                rho = torch.linalg.svdvals(a[i]).clamp(max=1 - 1e-12)
                result[i, j] = -0.5 * torch.log(1 - rho**2).sum()
        return result.cpu()


def _whitening(covariances: Tensor) -> Tensor:
    """Return matrices W (n, p, p): `W S W^T = I` on the directions that have variance, 0 on those that have none.

    Repetitive text has fewer different tokens than dimensions: boundary state 0 then has less than full rank.
    """
    variances, directions = torch.linalg.eigh(covariances)
    scale = torch.where(variances > ROUNDING * variances.mean(1, keepdim=True), variances, torch.inf).rsqrt()
    whitening: Tensor = scale[:, :, None] * directions.mT
    return whitening


@dataclass(frozen=True)
class KSG(Estimator):
    """MI by k nearest neighbours (Kraskov, Stoegbauer, Grassberger 2004, eq. 8), maximum norm, on sampled tokens.

    `MI = psi(k) + psi(n) - mean(psi(n_x + 1) + psi(n_y + 1))`. It saturates near log(n): where states are almost the
    same it ranks and does not measure. Dimensions are scaled to unit variance first, which does not change MI.
    """

    neighbours: int = 3
    noise: float = NOISE
    max_tokens: int = 1_500
    name: str = "ksg"

    @property
    def settings(self) -> dict[str, float]:
        return {"neighbours": self.neighbours}

    def least_tokens(self, dims: int) -> int:
        return max(dims, self.neighbours + 2)

    def _mi(self, states: Tensor, seed: int) -> Tensor:
        count, tokens, _ = states.shape
        result = torch.zeros(count, count, dtype=torch.float64)
        clean = [_chebyshev(x) for x in states]
        for j in range(count):
            dy = _chebyshev(_observed(states[j], self.noise, seed + j))
            for i in range(j + 1):
                dx = clean[i]
                joint = torch.maximum(dx, dy)
                radius = joint.kthvalue(self.neighbours, dim=1, keepdim=True).values
                near = torch.stack([(dx < radius).sum(1), (dy < radius).sum(1)]).double()
                psi = torch.special.digamma
                constants = torch.tensor([self.neighbours, tokens], dtype=torch.float64)
                result[i, j] = (psi(constants).sum() - psi(near + 1).sum(0).mean()).cpu()
        return result


@dataclass(frozen=True)
class Renyi(Estimator):
    """MI by matrix-based Renyi entropy (Sanchez Giraldo, Rao, Principe 2015), alpha = 2, Gaussian kernel.

    `I(x; y) = S(A_x) + S(A_y) - S(A_x o A_y / tr)`, `S(A) = -log tr(A^2)`; A the Gram matrix over its trace, o the
    entrywise product. Kernel width: `bandwidth` times the median distance between tokens, for each boundary.
    """

    bandwidth: float = 1.0
    noise: float = NOISE
    max_tokens: int = 1_500
    name: str = "renyi"

    @property
    def settings(self) -> dict[str, float]:
        return {"bandwidth": self.bandwidth, "alpha": 2}

    def least_tokens(self, dims: int) -> int:
        return max(dims, 2)

    def _mi(self, states: Tensor, seed: int) -> Tensor:
        count = len(states)
        result = torch.zeros(count, count, dtype=torch.float64)
        clean = [self._gram(x) for x in states]
        for j in range(count):
            noisy = self._gram(_observed(states[j], self.noise, seed + j))
            for i in range(j + 1):
                result[i, j] = self.entropy(clean[i]) + self.entropy(noisy) - self.entropy(clean[i] * noisy)
        return result

    def _gram(self, x: Tensor) -> Tensor:
        """Return the Gram matrix (n, n), ones on the diagonal; `entropy` divides by its trace n."""
        # Distances come from a product of matrices: in float32, far from the mean, they would be its rounding.
        centred = x.double() - x.double().mean(0)
        squared = torch.cdist(centred, centred).square().float()
        upper = squared[torch.triu_indices(len(x), len(x), 1, device=x.device).unbind()]
        width = upper.median().clamp(min=1e-30) * self.bandwidth**2
        return torch.exp(-squared / (2 * width))

    @staticmethod
    def entropy(gram: Tensor) -> Tensor:
        """Return `-log tr((K/n)^2)` of a Gram matrix K (n, n) with ones on the diagonal."""
        return -torch.log((gram.double() ** 2).mean()).cpu()


def segment_costs(mi: Tensor) -> Tensor:
    """Return what each segment [i, j) loses, (L+1, L+1) nats: `cost[i, j] = I(h_i ; h_i + e) - I(h_i ; h_j + e)`."""
    return torch.triu(mi.diagonal()[:, None] - mi)


@dataclass(frozen=True)
class DataProcessing:
    """How well estimates keep the data processing inequality.

    violations: how many of the `triples` triples of boundaries break it by more than the tolerance. worst_nats: by how
    much the worst one does; 0 where none does.
    """

    violations: int
    triples: int
    worst_nats: float


def data_processing(mi: Tensor, tolerance_nats: float = DPI_TOLERANCE_NATS) -> DataProcessing:
    """Check `I(h_i; h_k + e) <= I(h_j; h_k + e)` for all i < j < k: h_i -> h_j -> h_k + e is a chain.

    `I(h_i; h_k + e_k) <= I(h_i; h_j + e_j)` need not hold: each state has a noise of its own, so that is no chain.
    """
    count = len(mi)
    excess = [mi[:j, k] - mi[j, k] for k in range(count) for j in range(1, k)]
    every = torch.cat(excess) if excess else torch.zeros(0, dtype=mi.dtype)
    broken = every[every > tolerance_nats]
    return DataProcessing(len(broken), len(every), float(broken.max()) if len(broken) else 0.0)


def check_tokens(tokens: int, dims: int, estimator: Estimator) -> None:
    """Raise UserError where there are too few tokens for states of `dims` dimensions."""
    needed = estimator.least_tokens(dims)
    if tokens < needed:
        more = "more calibration text or --tokens, or " if needed <= estimator.max_tokens else ""
        raise UserError(
            f"{estimator.name} MI of {dims} dimensions needs at least {needed} tokens, got {tokens}; "
            f"give {more}a smaller projection"
        )


def check_states(states: Tensor, estimator: Estimator) -> None:
    """Refuse states of which nothing can be estimated."""
    if not torch.isfinite(states).all():
        boundary = int((~torch.isfinite(states)).flatten(1).any(1).nonzero()[0])
        raise UserError(f"boundary state {boundary} holds NaN or Inf (the output of {made_by(boundary)})")
    check_tokens(states.shape[1], states.shape[2], estimator)
    spread = (states - states.mean(1, keepdim=True)).abs().flatten(1).amax(1)
    still = spread <= STILL * states.abs().flatten(1).amax(1)
    if still.any():
        raise UserError(f"boundary state {int(still.nonzero()[0])} is the same for every token; nothing to estimate")
    if estimator.noise < 0:
        raise UserError(f"noise must not be negative, got {estimator.noise}")


def _observed(x: Tensor, noise: float, seed: int) -> Tensor:
    """Return x + e; the variance of e is `noise` times the mean variance per dimension of x."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    e = torch.randn(x.shape, generator=generator).to(x)
    return x + e * (noise * x.var(0).mean()).sqrt()


def _chebyshev(x: Tensor) -> Tensor:
    """Return maximum-norm distances (n, n), each dimension scaled to unit variance; infinite on the diagonal."""
    scaled = ((x - x.mean(0)) / x.std(0).clamp(min=1e-30)).float()
    distance = torch.cdist(scaled, scaled, p=math.inf)
    return distance.fill_diagonal_(math.inf)
