"""Asks an arm again and again whether it is well."""

from __future__ import annotations

import asyncio
import logging

from serve.ab.arms.arm import Arm
from serve.ab.wire.upstream import Upstream, UpstreamError

logger = logging.getLogger("mi_prun_ab")

# The second for engines that have no first, or that guard it by a key of its own.
PATHS = ("/health", "/v1/models")
NO_SUCH_METHOD = 501


async def fault(arm: Arm, upstream: Upstream) -> str | None:
    """Return why the arm is not well; None where it is.

    An arm is well where its health path answers in time with a status of 200 to 299. Without a health path of its own,
    a refusal of /health (any 4xx) says nothing, and /v1/models is asked in its place, with the arm's key.
    """
    refused: list[str] = []
    path = ""
    try:
        async with asyncio.timeout(arm.health.probe_timeout_s):
            for path in [arm.config.health_path] if arm.config.health_path else PATHS:
                answer = await upstream.send("GET", f"{arm.base_url}{path}", arm.key_headers)
                answer.close()
                if 200 <= answer.status < 300:
                    return None
                refused.append(f"GET {path} answers with status {answer.status}")
                if not (400 <= answer.status < 500 or answer.status == NO_SUCH_METHOD):
                    break
    except UpstreamError as error:
        return f"GET {path}: {error}"
    except TimeoutError:
        return f"GET {path} is not answered within {arm.health.probe_timeout_s:g} s"
    return ", ".join(refused)


async def watch(arm: Arm, upstream: Upstream) -> None:
    """Probe for ever: an arm that nobody looks at any more would stay as it was found last."""
    while True:
        if arm.base_url is not None:
            try:
                why = await fault(arm, upstream)
            except Exception as error:
                if arm.healthy:  # once, not at each probe
                    logger.exception("the probe of arm %s failed in a way that was not foreseen", arm.name)
                why = f"its probe failed: {type(error).__name__}"
            arm.probed(why)
        await asyncio.sleep(arm.health.probe_s)
