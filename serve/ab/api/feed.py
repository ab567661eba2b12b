"""Routes for the page, beside the experiment and its verdict: live figures, and what each arm says it lacks."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field, ValidationError

from serve.ab.api.admin import REFUSALS
from serve.ab.arms.arm import Arm
from serve.ab.proxy.security import require_operator
from serve.ab.verdict.live_window import LiveFigures, LiveWindow
from serve.ab.wire.upstream import Upstream, UpstreamError

PRUNING_PATH = "/v1/pruning"
PRUNING_SECONDS = 5.0
PRUNING_BYTES = 2**20
Block = Annotated[int, Field(ge=0, lt=100_000)]


class PrunedFrom(BaseModel):
    """The dense model that an arm's model was made of."""

    name: str


class PruningQuality(BaseModel):
    """The quality of an arm's model beside its dense model, as its manifest has it."""

    dense_perplexity: float
    pruned_perplexity: float
    kl_nats_per_token: float


class HealedText(BaseModel):
    """Perplexity on one held-out text: dense, pruned, and healed."""

    text: str
    dense_perplexity: float
    pruned_perplexity: float
    healed_perplexity: float


class PruningHealing(BaseModel):
    """How the kept blocks of an arm's model were healed, and on what."""

    method: str
    text: str
    tokens: int
    fit_tokens: int = 0
    seed: int | None = None
    quality: list[HealedText] = Field(default_factory=list)


class Pruning(BaseModel):
    """An arm's answer to `GET /v1/pruning`, as far as it is used; blocks are 0-based."""

    pruned: bool
    dropped_blocks: list[Block] = Field(default_factory=list)
    kept_blocks: list[Block] = Field(default_factory=list)
    parameter_ratio: float | None = None
    method: str | None = None
    weight_bytes: int | None = None
    dense_weight_bytes: int | None = None
    dense: PrunedFrom | None = None
    quality: PruningQuality | None = None
    healing: PruningHealing | None = None


class ArmPruning(BaseModel):
    """One arm's pruning; None where it does not say. error: why not, where it should."""

    name: str
    pruning: Pruning | None = None
    error: str | None = None


class PruningAnswer(BaseModel):
    """What all arms say."""

    arms: list[ArmPruning]


def feed_router(live: LiveWindow) -> APIRouter:
    """Return the routes `/admin/live` and `/admin/pruning`."""
    router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_operator)], responses=REFUSALS)

    @router.get("/live")
    async def live_figures() -> LiveFigures:
        """Return the figures of the last ten minutes."""
        return live.figures()

    @router.get("/pruning")
    async def pruning_of_arms(request: Request) -> PruningAnswer:
        """Ask every arm anew. An engine that is not `mi-prun-serve` has no such route, which is no error."""
        ab = request.app.state.ab
        return PruningAnswer(arms=await asyncio.gather(*(pruning_of(arm, ab.upstream) for arm in ab.arms.values())))

    return router


async def pruning_of(arm: Arm, upstream: Upstream) -> ArmPruning:
    """Ask one arm what it lacks."""
    if arm.base_url is None:
        return ArmPruning(name=arm.name, error="its engine is not up yet")
    headers = [(b"accept", b"application/json"), *arm.key_headers]
    try:
        async with asyncio.timeout(PRUNING_SECONDS):
            answer, body = await upstream.get(arm.base_url + PRUNING_PATH, headers, PRUNING_BYTES)
    except (UpstreamError, TimeoutError):
        return ArmPruning(name=arm.name, error="its engine does not answer")
    if answer.status != 200:
        return ArmPruning(name=arm.name)
    try:  # a body that was cut is no JSON
        return ArmPruning(name=arm.name, pruning=Pruning.model_validate_json(body[:PRUNING_BYTES]))
    except ValidationError:
        return ArmPruning(name=arm.name, error=f"what its engine says at {PRUNING_PATH} is not what mi-prun-serve says")
