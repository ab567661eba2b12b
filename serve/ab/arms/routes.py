"""Asks an arm once which of the paths it has that not every engine has."""

from __future__ import annotations

import asyncio
import json

from serve.ab.arms.arm import UNKNOWN, Arm
from serve.ab.wire.upstream import Upstream, UpstreamError

JSON = (b"content-type", b"application/json")
NO_SUCH_ROUTE = (*UNKNOWN, 501)


async def has_route(arm: Arm, path: str, model: str | None, upstream: Upstream) -> bool:
    """Return whether an arm's engine has a path. One that does not say counts as having it; it is asked again.

    The question is a request without a prompt: an engine that has the path refuses it for that, one that lacks the path
    answers 404, 405 or 501. model: a name that the engine serves, so that 404 is not about the model.
    """
    known = arm.routes.get(path)
    if known is not None or not arm.available:
        return known is not False
    body = json.dumps({"model": model} if model else {}).encode()
    try:
        async with asyncio.timeout(arm.health.probe_timeout_s):
            answer = await upstream.send("POST", f"{arm.base_url}{path}", [JSON, *arm.key_headers], body)
    except (UpstreamError, TimeoutError):
        return True
    answer.close()
    if answer.status in NO_SUCH_ROUTE:
        arm.routes[path] = False
    elif answer.status < 500 and answer.status not in (401, 403, 408, 429):
        arm.routes[path] = True
    return arm.routes.get(path, True)
