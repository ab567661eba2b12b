"""The way in: who asks, what for, and which arm is to answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from serve.ab.arms.routes import has_route
from serve.ab.experiment.experiment import Assignment
from serve.ab.proxy.admitted_request import AdmittedRequest, Receive, Scope, Send
from serve.ab.proxy.deadline import Abort, AbortedError, Deadline, Phase
from serve.ab.proxy.failover import Failover
from serve.ab.proxy.parsed_request import NOT_IN_EACH_ENGINE, ParsedRequest, RefusalError, parse_request
from serve.ab.proxy.security import Caller, authorization_of
from serve.ab.proxy.service import Service
from serve.ab.proxy.stream_response import StreamResponse
from serve.ab.wire import headers as header
from serve.ab.wire.unpacking import KNOWN, DamagedBodyError, GrowsTooLargeError, UnknownEncodingError, unpack

CLOSE = (b"connection", b"close")
JSON = (b"content-type", b"application/json")
CHALLENGE = (b"www-authenticate", b"Bearer")
RETRY = (b"retry-after", b"1")


class ClientGoneError(Exception):
    """The client went away before its request was whole."""


class Proxy:
    """An ASGI application for the paths that arms answer."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, from its first byte to its last."""
        deadline = Deadline()
        try:
            with self._counted(deadline):
                request = await self._admit(deadline, scope, receive, send)
                async with _watching_client(receive, deadline):
                    begun = await Failover(self.service, request).first_answer()
                    if begun is not None:
                        await StreamResponse(self.service, begun).run()
        except RefusalError as refusal:
            # Where the request was not read to its end, its rest must not be taken for the next one.
            await self._refuse(scope, send, refusal, unread=deadline.phase is Phase.REQUEST)
        except ClientGoneError:
            pass
        except asyncio.CancelledError:
            pass  # the server ends: `StreamResponse` said what there was to say, and this is the task's own end

    @contextlib.contextmanager
    def _counted(self, deadline: Deadline) -> Iterator[None]:
        """Hold one of the places for requests. Raises RefusalError where none is free."""
        open_deadlines = self.service.deadlines.open
        if len(open_deadlines) >= self.service.config.limits.concurrency:
            raise RefusalError(503, "too many requests at once", "overloaded_error", "concurrency_limit")
        open_deadlines.add(deadline)
        try:
            yield
        finally:
            open_deadlines.discard(deadline)

    async def _admit(self, deadline: Deadline, scope: Scope, receive: Receive, send: Send) -> AdmittedRequest:
        """Read the request and draw its arms. Raises RefusalError, or ClientGoneError."""
        service = self.service
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        authorization = authorization_of(headers)
        caller = service.keys.caller(authorization)
        if caller.role == "nobody":
            raise RefusalError(401, "an API key is needed", "authentication_error", "invalid_api_key")
        body = self._unpack(await self._read_body(deadline, headers, receive), headers)
        deadline.wait_for(Phase.FIRST_BYTE)
        parsed = parse_request(scope["path"], body, service.config.names, service.arms)
        await self._check_routes(parsed)
        client_key = authorization if service.keys.open and caller.role != "operator" else None
        assignment = self._assign(parsed, caller, headers)
        return AdmittedRequest(deadline, parsed, assignment, headers, client_key, send)

    async def _read_body(self, deadline: Deadline, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        limit = self.service.config.limits.body_bytes
        if header.media_type(headers) != b"application/json":
            raise RefusalError(415, "the content type must be application/json")
        too_large = RefusalError(413, f"the body is larger than {limit:,} bytes", code="body_limit")
        length = header.value_of(headers, b"content-length")
        if length is not None and int(length) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            with deadline.interruptible():
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message["body"])
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    if not message["more_body"]:
                        return b"".join(parts)
        except AbortedError as aborted:
            raise RefusalError(408, "the request took too long to come", code="request_timeout") from aborted

    def _unpack(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the body without its content encoding, up to the bound of a body. Raises RefusalError."""
        limit = self.service.config.limits.body_bytes
        encoding = header.value_of(headers, b"content-encoding") or b""
        try:
            return unpack(body, encoding, limit)
        except UnknownEncodingError as error:
            raise RefusalError(415, f"the content encoding must be {' or '.join(KNOWN)}, or none") from error
        except DamagedBodyError as error:
            raise RefusalError(400, "the body cannot be unpacked: it is damaged, or packed in another way") from error
        except GrowsTooLargeError as error:
            raise RefusalError(413, f"the body unpacks to more than {limit:,} bytes", code="body_limit") from error

    async def _check_routes(self, parsed: ParsedRequest) -> None:
        """Refuse a path that an arm's engine lacks: one arm alone would answer, and nothing could be compared."""
        if parsed.path not in NOT_IN_EACH_ENGINE:
            return
        service = self.service
        arms = list(service.arms.values())
        found = await asyncio.gather(
            *(has_route(arm, parsed.path, arm.config.upstream_model or parsed.model, service.upstream) for arm in arms)
        )
        if lacking := [arm.name for arm, has in zip(arms, found, strict=True) if not has]:
            raise RefusalError(
                404,
                f"the engine of arm {', '.join(lacking)} has no {parsed.path}; it is answered where all arms have it. "
                "Use /v1/chat/completions",
                "NotFoundError",
                "path_not_in_all_arms",
            )

    def _assign(self, parsed: ParsedRequest, caller: Caller, headers: list[tuple[bytes, bytes]]) -> Assignment:
        service = self.service
        named = header.value_of(headers, header.ARM)
        explicit = parsed.arm
        if named is not None:
            explicit = named.decode("latin-1")
            if parsed.arm not in (None, explicit):
                raise RefusalError(400, f"the model names arm {parsed.arm}, the header {header.ARM.decode()} another")
        if explicit is not None:
            if caller.role != "operator":
                raise RefusalError(403, "only the admin key may choose an arm", "permission_error", "arm_choice")
            if explicit not in service.arms:
                raise RefusalError(400, f"no such arm; there are {', '.join(service.arms)}")
        return service.experiment.assign(self._sticky_key(parsed, caller, headers), explicit)

    def _sticky_key(self, parsed: ParsedRequest, caller: Caller, headers: list[tuple[bytes, bytes]]) -> str | None:
        """Return what the client sticks to an arm by; None where it is drawn at random.

        A single API key says nothing of who asks: it would send everything to one arm.
        """
        for source in self.service.config.sticky:
            if source == "header":
                value = header.value_of(headers, self.service.config.sticky_header.encode())
                key = value.decode("latin-1") if value else None
            elif source == "user":
                key = parsed.user
            else:
                key = caller.identity if self.service.keys.several else None
            if key:
                return key
        return None

    async def _refuse(self, scope: Scope, send: Send, refusal: RefusalError, *, unread: bool) -> None:
        self.service.refused(scope["path"], refusal)
        body = refusal.body()
        headers = [JSON, (b"content-length", str(len(body)).encode())]
        headers += [CLOSE] if unread else []
        headers += [CHALLENGE] if refusal.status == 401 else [RETRY] if refusal.status == 503 else []
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def _watching_client(receive: Receive, deadline: Deadline) -> AsyncIterator[None]:
    """Abort the request when its client goes away."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        deadline.abort(Abort.CLIENT_GONE)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
