"""The routes `/metrics`, `/metrics/ARM` and `/admin/verdict`."""

from __future__ import annotations

import asyncio
import re

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serve.ab.api.admin import REFUSALS
from serve.ab.proxy.security import require_operator
from serve.ab.verdict.schema import Verdict
from serve.ab.wire.headers import value_of
from serve.ab.wire.upstream import UpstreamError

router = APIRouter()
ENGINE_METRICS_BYTES = 8 * 2**20
ENGINE_METRICS_S = 5.0
TEXT_TYPE = re.compile(rb"(text/plain|application/openmetrics-text)[ -~]*")


@router.get("/metrics", tags=["metrics"], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format. They are open, as an engine's: nothing of a request or a key."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/metrics/{arm}",
    tags=["metrics"],
    response_class=PlainTextResponse,
    responses={404: {"description": "No such arm"}, 502: {"description": "The arm does not say"}},
)
async def arm_metrics(request: Request, arm: str) -> Response:
    """Return what the arm's engine says at its /metrics, as it is."""
    service = request.app.state.ab
    if arm not in service.arms:
        raise HTTPException(404, f"no such arm; there are {', '.join(service.arms)}")
    target = service.arms[arm]
    if target.base_url is None:
        raise HTTPException(502, f"arm {arm} is not up")
    try:
        async with asyncio.timeout(ENGINE_METRICS_S), request.app.state.metrics.asking:
            url = f"{target.base_url}/metrics"
            answer, body = await service.upstream.get(url, target.key_headers, ENGINE_METRICS_BYTES)
    except UpstreamError as error:
        raise HTTPException(502, f"arm {arm} does not say its metrics: {error}") from error
    except TimeoutError as error:
        raise HTTPException(502, f"arm {arm} did not say its metrics within {ENGINE_METRICS_S:g} s") from error
    if len(body) > ENGINE_METRICS_BYTES:
        raise HTTPException(502, f"the metrics of arm {arm} pass {ENGINE_METRICS_BYTES:,} bytes")
    if answer.status != 200:
        raise HTTPException(502, f"arm {arm} answers /metrics with status {answer.status}")
    content_type = value_of(answer.headers, b"content-type") or b""
    known = TEXT_TYPE.fullmatch(content_type)
    return Response(body, media_type=content_type.decode("ascii") if known else "text/plain; charset=utf-8")


@router.get("/admin/verdict", tags=["admin"], dependencies=[Depends(require_operator)], responses=REFUSALS)
async def verdict(request: Request) -> Verdict:
    """Return the verdict on the figures so far."""
    now: Verdict = request.app.state.ab.collector.verdict()
    return now


@router.post("/admin/verdict/reset", tags=["admin"], dependencies=[Depends(require_operator)], responses=REFUSALS)
async def reset(request: Request) -> Verdict:
    """Begin anew, with no figures and no broken guardrail: an arm is another one now. The weights stay."""
    collector = request.app.state.ab.collector
    collector.reset()
    begun: Verdict = collector.verdict()
    return begun
