"""The settings of `mi-prun analyze` and `mi-prun plan`, and their defaults: the one place they live."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnalyzeSettings:
    """projection: dimensions p each boundary state is projected to. noise: variance of the observation noise, in mean
    variances per dimension. window_tokens: None takes the model's context, capped. batch_tokens: None fits the device.
    ranking_tokens and held_out_tokens: None takes half of scoring_tokens.
    """

    calibration: str = "self"
    scoring_tokens: int = 16_384
    ranking_tokens: int | None = None
    held_out_tokens: int | None = None
    window_tokens: int | None = None
    estimator: str = "gaussian"
    projection: int = 64
    noise: float = 1e-2
    seed: int = 0
    batch_tokens: int | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class PlanSettings:
    """rerank: candidate sets measured by KL, 0 is the paper's way. quality: measure the choice on held-out text.
    model: where the dense model is, if not where the analysis found it.
    """

    method: str = "mi-prun"
    rerank: int = 16
    quality: bool = True
    model: str | None = None
    seed: int = 0
    device: str | None = None
