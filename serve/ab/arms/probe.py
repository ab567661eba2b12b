"""Asks an arm again and again whether it is well."""

from __future__ import annotations

import asyncio
import logging

from serve.ab.arms.arm import Arm
from serve.ab.wire.upstream import Upstream, UpstreamError

logger = logging.getLogger("mi_prun_ab")

PATHS = ("/health", "/v1/models")  # the second for engines that have no first


async def answers(arm: Arm, upstream: Upstream) -> bool:
    """Whether it answers 200 in time; any 404 of the first path is asked again of the second."""
    try:
        async with asyncio.timeout(arm.health.probe_timeout_s):
            for path in PATHS:
                answer = await upstream.send("GET", f"{arm.base_url}{path}", arm.key_headers)
                answer.close()
                if answer.status != 404:
                    return answer.status == 200
    except (UpstreamError, TimeoutError):
        pass
    return False


async def watch(arm: Arm, upstream: Upstream) -> None:
    """For ever: an arm that nobody looks at any more would stay as it was found last."""
    while True:
        if arm.base_url is not None:
            try:
                answered = await answers(arm, upstream)
            except Exception:
                if arm.healthy:  # once, not at each probe
                    logger.exception("the probe of arm %s failed in a way that was not foreseen", arm.name)
                answered = False
            arm.probed(answered)
        await asyncio.sleep(arm.health.probe_s)
