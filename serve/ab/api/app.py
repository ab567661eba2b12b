"""The application: the proxied paths, the admin routes, and what else is included."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from mi_prun.version import __version__
from serve.ab.api import admin, metrics_routes, models
from serve.ab.api.metrics import Metrics
from serve.ab.api.openapi import describe_proxied
from serve.ab.api.page import add_page
from serve.ab.arms import probe
from serve.ab.arms.arm import Arm, make_arms
from serve.ab.config import Config
from serve.ab.experiment.aggregates_store import AggregatesStore
from serve.ab.experiment.experiment import Experiment
from serve.ab.experiment.store import Store
from serve.ab.proxy.parsed_request import PATHS
from serve.ab.proxy.proxy import Proxy
from serve.ab.proxy.security import Keys, load_keys
from serve.ab.proxy.service import Service
from serve.ab.wire.bodies import BoundedBodies
from serve.ab.wire.headers import ARM, REASON
from serve.ab.wire.upstream import Upstream

BROWSER_PATHS = frozenset((*PATHS, "/v1/models", "/health"))


class Application(FastAPI):
    """FastAPI's application, past whose layers proxied requests go: each layer costs time before the first byte."""

    proxy: Proxy
    cors: CORSMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope = _as_written_in_routes(scope)
        if self.cors is not None and _for_browsers(scope["path"]):
            await self.cors(scope, receive, send)
        else:
            await self.answer(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whether it is proxied or has a route here."""
        if scope["method"] == "POST" and scope["path"] in PATHS:
            await self.proxy(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _for_browsers(path: str) -> bool:
    return path in BROWSER_PATHS or path.startswith("/v1/models/")


def _as_written_in_routes(scope: Scope) -> Scope:
    """Return the request as routes know it: no slash at the end of a path, and HEAD as GET, whose body is not sent.

    A redirect to the path without a slash would lose the body of many clients' requests.
    """
    path = scope["path"]
    if path.endswith("/") and path != "/":
        scope = {**scope, "path": path.rstrip("/") or "/"}
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


def create_app(
    config: Config,
    arms: Mapping[str, Arm] | None = None,
    *,
    keys: Keys | None = None,
    reset: bool = False,
    upstream: Upstream | None = None,
    on_start: Callable[[asyncio.AbstractEventLoop], None] = lambda loop: None,
) -> FastAPI:
    """Make the application; `app.state.ab` is its Service, `app.state.metrics` its Metrics.

    arms: None makes them from the config, which is enough where all have a URL. upstream: asks the arms; None asks them
    over HTTP. on_start: called with the loop that serves.
    """
    if arms is None:
        arms = make_arms(config)
    store = Store(config.state)
    service = Service(
        config,
        arms,
        keys if keys is not None else load_keys(config),
        store,
        Experiment(config, store, reset=reset),
        upstream,
    )

    metrics = Metrics(service)
    service.listeners.append(metrics.observe)
    kept = AggregatesStore(store, service.collector)
    if reset:
        kept.forget()
    else:
        kept.load()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        on_start(asyncio.get_running_loop())
        async with service.upstream:
            tasks = [
                asyncio.create_task(service.deadlines.run()),
                asyncio.create_task(service.access_log.run()),
                asyncio.create_task(kept.run()),
                asyncio.create_task(service.experiment.run()),
                *(asyncio.create_task(probe.watch(arm, service.upstream)) for arm in service.arms.values()),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await service.shadow.close()
                kept.save(service.collector.state())
                service.access_log.close()
                store.close()

    app = Application(title="mi-prun-ab", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.ab = service
    app.state.metrics = metrics
    app.add_middleware(BoundedBodies, request_s=config.limits.request_s, spared=frozenset(PATHS))
    app.proxy = Proxy(service)
    if config.cors_origins:
        app.cors = CORSMiddleware(
            app.answer,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=(ARM.decode(), REASON.decode()),
        )
    for path in PATHS:  # what other methods are told
        app.router.routes.append(Route(path, app.proxy, methods=["POST"]))
    app.include_router(models.router)
    app.include_router(admin.router)
    app.include_router(metrics_routes.router)
    describe_proxied(app, config.names)

    @app.exception_handler(405)
    async def wrong_method(request: Request, error: Exception) -> Response:
        """Refuse a method. A path that several routes share allows the methods of all of them."""
        routes = [route for route in app.routes if route.matches(request.scope)[0] != Match.NONE]
        methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
        return JSONResponse({"detail": "Method Not Allowed"}, 405, {"Allow": ", ".join(sorted(methods))})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        """Refuse a body. What came is not repeated: NaN and halves of characters cannot be written as JSON."""
        told = [{"type": one["type"], "loc": one["loc"], "msg": one["msg"]} for one in error.errors()]
        said = json.dumps({"detail": told}, default=str)  # ASCII alone
        return Response(said, 422, media_type="application/json")

    @app.get("/health", responses={503: {"description": "No arm can be sent requests"}})
    async def health() -> Response:
        """Say whether an arm can be sent requests: 200, else 503."""
        up = any(arm.available for arm in service.arms.values())
        return JSONResponse({"arms": [arm.describe() for arm in service.arms.values()]}, 200 if up else 503)

    add_page(app)
    return app
