"""The route `GET /v1/models`: one model for clients; for operators its arms by name too."""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from serve.ab.proxy.security import caller_of, require_client

router = APIRouter(tags=["models"], dependencies=[Depends(require_client)])
STARTED = int(time.time())


class Model(BaseModel):
    """A model, as OpenAI's API lists it."""

    id: str
    object: str = "model"
    created: int = STARTED
    owned_by: str = "mi-prun-ab"


class Models(BaseModel):
    """A list of models, as OpenAI's API has it."""

    object: str = "list"
    data: list[Model]


@router.get("/v1/models", responses={401: {"description": "An API key is needed"}})
async def models(request: Request) -> Models:
    """List the names that a caller may ask for."""
    ab = request.app.state.ab
    names = list(ab.config.names)
    if caller_of(request).role == "operator":
        names += [f"{ab.config.model_name}@{arm}" for arm in ab.arms]
    return Models(data=[Model(id=name) for name in names])
