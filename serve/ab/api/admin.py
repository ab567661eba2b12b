"""The routes `GET` and `PUT /admin/experiment`, for who holds the admin key."""

from __future__ import annotations

import sqlite3
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from serve.ab.experiment.store import ConflictError, State
from serve.ab.proxy.security import require_operator

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_operator)])
REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The admin key is needed"},
    403: {"description": "No admin key is set on this server"},
}
VERSION_TAG = r'^((W/)?"[0-9]{1,18}")?$'  # as GET gives it in ETag
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class ExperimentChange(BaseModel):
    """A change; what is left out stays. version: the one it was meant for, where If-Match does not say it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int | None = None
    weights: dict[str, Weight] | None = None
    shadow_share: Share | None = None
    paused: bool | None = None
    why: str = Field("", max_length=500)


class ExperimentAnswer(BaseModel):
    """The experiment as it is, its arms and its last changes. notes: what an operator should know."""

    name: str
    control: str
    state: State
    arms: list[dict[str, Any]]
    changes: list[State]
    notes: list[str]


def _answer(request: Request) -> ExperimentAnswer:
    ab = request.app.state.ab
    return ExperimentAnswer(
        name=ab.experiment.name,
        control=ab.experiment.control,
        state=ab.experiment.state,
        arms=[{**arm.describe(), "fault": arm.fault} for arm in ab.arms.values()],
        changes=ab.store.changes(ab.experiment.name, 20),
        notes=ab.notes(),
    )


@router.get("/experiment", responses=REFUSALS)
async def read_experiment(request: Request, response: Response) -> ExperimentAnswer:
    """Return the experiment; its version is the ETag."""
    answer = _answer(request)
    response.headers["ETag"] = f'"{answer.state.version}"'
    return answer


@router.put(
    "/experiment",
    responses={
        **REFUSALS,
        400: {"description": "The change cannot be made"},
        409: {"description": "The experiment has another version by now (version in the body)"},
        412: {"description": "The experiment has another version by now (If-Match)"},
        507: {"description": "The state cannot be written; nothing was changed"},
        428: {"description": "Neither If-Match nor version says which version the change is meant for"},
    },
)
async def change_experiment(
    request: Request,
    response: Response,
    change: ExperimentChange,
    if_match: Annotated[str, Header(pattern=VERSION_TAG)] = "",
) -> ExperimentAnswer:
    """Change the experiment, where it still has the version that the change was meant for."""
    expected = change.version
    if if_match:
        tag = if_match.removeprefix("W/").strip('"')
        if expected is not None and expected != int(tag):
            raise HTTPException(412, "If-Match and version name two versions")
        expected = int(tag)
    if expected is None:
        raise HTTPException(428, "say by If-Match, or by version, which version this change is meant for")
    ab = request.app.state.ab
    try:
        ab.experiment.change(
            expected,
            who="admin",
            why=change.why,
            weights=change.weights,
            shadow_share=change.shadow_share,
            paused=change.paused,
        )
    except ConflictError as error:
        status = 412 if if_match else 409
        version = ab.experiment.state.version
        raise HTTPException(status, f"the experiment has version {version} by now, not {expected}") from error
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    except sqlite3.Error as error:
        raise HTTPException(507, f"the state cannot be written, and nothing was changed: {error}") from error
    answer = _answer(request)
    response.headers["ETag"] = f'"{answer.state.version}"'
    return answer
