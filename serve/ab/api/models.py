"""The routes `GET /v1/models` and `/v1/models/NAME`: one model for clients; for operators its arms by name too."""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from serve.ab.proxy.parsed_request import no_such_model
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


def _names(request: Request) -> list[str]:
    """Return the names that a caller may ask for."""
    ab = request.app.state.ab
    names = list(ab.config.names)
    if caller_of(request).role == "operator":
        names += [f"{ab.config.model_name}@{arm}" for arm in ab.arms]
    return names


@router.get("/v1/models", responses={401: {"description": "An API key is needed"}})
async def models(request: Request) -> Models:
    """List the names that a caller may ask for."""
    return Models(data=[Model(id=name) for name in _names(request)])


@router.get(
    "/v1/models/{name:path}",
    response_model=Model,
    responses={401: {"description": "An API key is needed"}, 404: {"description": "No such model"}},
)
async def model(request: Request, name: str) -> Response:
    """Tell whether a name may be asked for. A name may hold slashes, as hub ids do."""
    names = _names(request)
    if name not in names:
        refusal = no_such_model(name, names)
        return Response(refusal.body(), refusal.status, media_type="application/json")
    return JSONResponse(Model(id=name).model_dump())
