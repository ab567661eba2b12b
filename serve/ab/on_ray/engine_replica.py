"""A replica of an arm: an engine of its own, and the way to it."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from mi_prun.errors import UserError
from serve.ab.arms.supervisor import EngineSpec, SupervisedEngine, command_of
from serve.ab.config import Config
from serve.ab.wire.upstream import Headers, Upstream

Part = tuple[int, Headers] | bytes


class EngineReplica:
    """An engine of an arm, as a replica of the arm's deployment.

    The thread that makes this starts the engine, and the kernel ends the engine with that thread's process. A replica
    whose engine is lost counts as unhealthy: Ray starts another one in its place.
    """

    def __init__(self, config: Config, arm: str) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="mi-prun-ab-")
        key = secrets.token_urlsafe(24)
        spec = EngineSpec(
            name=arm,
            command=command_of(config.arms[arm], config.names),
            env={**dict.fromkeys(config.key_variables, ""), **config.arms[arm].env},
            key=key,
            log=Path(config.log_folder or self._scratch.name) / f"{arm}-{secrets.token_hex(4)}.log",
        )
        self._key = (b"authorization", f"Bearer {key}".encode())
        self._engine = SupervisedEngine(spec, config.restart)
        self._upstream = Upstream(config.limits.connect_s)
        try:
            self._engine.start()
        except (UserError, OSError):
            self.stop()
            raise

    async def ask(self, method: str, path: str, headers: Headers, body: bytes | None) -> AsyncIterator[Part]:
        """Yield the status and headers of the engine's answer, then its body as it comes. Raises UpstreamError."""
        sent = [*(pair for pair in headers if pair[0] != b"authorization"), self._key]
        answer = await self._upstream.send(method, f"{self._engine.url}{path}", sent, body)
        try:
            yield answer.status, list(answer.headers)
            while part := await answer.read():
                yield part
        finally:
            answer.close()

    async def check_health(self) -> None:
        """Raise UserError where the engine has ended, or has been deaf for too long; what is left of it is ended.

        Ray calls this every few seconds.
        """
        if (why := await asyncio.to_thread(self._engine.ended)) is not None:
            await asyncio.to_thread(self.stop)
            raise UserError(f"the engine of arm {self._engine.spec.name} is lost: {why}")

    def stop(self) -> None:
        """End the engine with all its processes. It may be called twice."""
        self._engine.stop(for_good=True)
        self._scratch.cleanup()

    def __del__(self) -> None:
        """End the engine where Ray ends the replica."""
        self.stop()
