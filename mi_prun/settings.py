"""The settings of `mi-prun analyze`, `plan` and `apply`, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from mi_prun.errors import UserError

MOST_SEED = 2**31 - 1  # the annealer's bound
SELF = "self"  # calibration text that is sampled from the model
RANKING_SHARE, HELD_OUT_SHARE = 16, 2  # times the tokens to score on


@dataclass(frozen=True)
class AnalyzeSettings:
    """How a model is analyzed.

    sources: text, each `TEXT` or `TEXT=WEIGHT`.
    ranking_tokens: None takes 16 times scoring_tokens, because a loss is noisier than a covariance.
    held_out_tokens: None takes 2 times scoring_tokens.
    window_tokens: None takes the model's context, capped.
    estimator: of the information between boundary states; docs/explanation/selection.md says why it is this one.
    projection: dimensions p that each boundary state is projected to; None takes the estimator's own.
    noise: variance of the observation noise, in mean variances per dimension of the observed state; None takes the
    estimator's own.
    batch_tokens: None fits the device.
    stream_blocks: keep one block in memory at a time.
    """

    sources: tuple[str, ...] = (SELF,)
    scoring_tokens: int = 4_096
    ranking_tokens: int | None = None
    held_out_tokens: int | None = None
    window_tokens: int | None = None
    estimator: str = "reading"
    projection: int | None = None
    noise: float | None = None
    seed: int = 0
    batch_tokens: int | None = None
    device: str | None = None
    dtype: str | None = None
    stream_blocks: bool = False

    @property
    def part_tokens(self) -> tuple[int, int, int]:
        """The tokens to score on, to rank on and to hold out."""
        scoring = self.scoring_tokens
        return scoring, self.ranking_tokens or RANKING_SHARE * scoring, self.held_out_tokens or HELD_OUT_SHARE * scoring


@dataclass(frozen=True)
class PlanSettings:
    """How blocks are chosen. docs/explanation/selection.md says why these are the defaults.

    rerank: how many sets are compared by their measured loss. 0 takes the first one that the method proposes; the
    method `mi-prun` with 0 is the paper's. None takes the method's own number.
    quality: measure the choice on held-out text.
    model: where the dense model is, if it is not where the analysis was made of it.
    criterion: the loss that sets are compared by, ce or kl. None takes ce, but kl under a limit of KL and on text
    sampled from the model, where both have the same expectation less a constant.
    recall: share of each window, at its end, that repeats its beginning while sets are compared (`text/recall.py`).
    """

    method: str = "hybrid"
    rerank: int | None = None
    quality: bool = True
    model: str | None = None
    seed: int = 0
    device: str | None = None
    criterion: str | None = None
    recall: float = 1 / 32


@dataclass(frozen=True)
class WriteSettings:
    """How a checkpoint is written.

    virtual: write no weights, point to the dense model.
    assume_uniform: let config fields pass that are not known and may be per block.
    """

    virtual: bool = False
    max_shard_bytes: int = 5_000_000_000
    assume_uniform: bool = False


def check_seed(seed: int) -> None:
    """Refuse a seed that the annealer does not take."""
    if not 0 <= seed <= MOST_SEED:
        raise UserError(f"--seed must be in 0..{MOST_SEED}, got {seed}")


@dataclass(frozen=True)
class HealSettings:
    """How the dropped blocks are made up for. docs/how-to/heal-a-pruned-model.md says how it trains.

    sources: text, each `TEXT` or `TEXT=WEIGHT`. fit: begin with the closed form. train: `lora`, `all` or `none`.
    tokens, minutes: how long is trained; one of them. rank: of LoRA. learning_rate: None takes that of `train`.
    batch_tokens: of one optimizer step; None fits the device. forward_tokens: run at once. ridge: of the closed form,
    in mean diagonals of the Gram. gate_tokens, validation_tokens: held out of each source. stream_blocks: keep one
    block in memory at a time. train_dtype: that products of the training are computed in; None takes what is faster on
    the device.
    """

    sources: tuple[str, ...] = (SELF,)
    fit: bool = True
    train: str = "lora"
    tokens: int | None = None
    minutes: float | None = None
    rank: int = 32
    learning_rate: float | None = None
    warm_up: float = 0.05
    batch_tokens: int | None = None
    forward_tokens: int = 2_048
    window_tokens: int = 512
    temperature: float = 1.0
    ce_share: float = 0.0
    fit_tokens: int = 16_384
    ridge: float = 0.1
    gate_tokens: int = 2_048
    validation_tokens: int = 1_024
    save_minutes: float = 3.0
    checkpoint_blocks: bool = False
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    stream_blocks: bool = False
    train_dtype: str | None = None

    @property
    def rate(self) -> float:
        """The learning rate."""
        return LEARNING_RATES[self.train] if self.learning_rate is None else self.learning_rate

    @property
    def share_of_rms(self) -> float | None:
        """The most that a tensor's learning rate may be of its root mean square; None: there is no such limit."""
        return SHARE_OF_RMS if self.train == "all" and self.learning_rate is None else None

    def windows_at_once(self, window_tokens: int) -> int:
        """Return how many windows are run at once."""
        return max(1, self.forward_tokens // window_tokens)

    def fit_windows(self, window_tokens: int) -> int:
        """Return how many windows the closed form sees."""
        return max(1, self.fit_tokens // window_tokens)


MOST_MINUTES = 1_000_000
LEARNING_RATES = {"lora": 1e-3, "all": 3e-4, "none": 0.0}
SHARE_OF_RMS = 1.6e-3  # 3e-4 for the matrices of SmolLM2, whose best rate that is
