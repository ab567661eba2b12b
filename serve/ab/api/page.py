"""The page at `/`: static files, read once, under a policy that lets them run nothing but themselves.

The policy is the second wall. The first is that the page writes whatever a model or an operator said as text, never as
HTML; `require-trusted-types-for` has the browser hold it to that.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import NamedTuple

from fastapi import APIRouter, FastAPI, Request, Response

from serve.ab.api.feed import feed_router
from serve.ab.verdict.live_window import LiveWindow

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # kept, but asked for again by its ETag: an upgrade is seen at once, in all files
}
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
INDEX = "index.html"


def add_page(app: FastAPI) -> None:
    """Add the page, and the routes it asks, to an application whose `state.ab` is the Service."""
    service = app.state.ab
    live = LiveWindow(tuple(service.arms))
    service.listeners.append(live)
    app.include_router(feed_router(live))
    app.include_router(page_router())


class Asset(NamedTuple):
    """A file of the page."""

    body: bytes
    media_type: str
    etag: str


def read_assets() -> dict[str, Asset]:
    """Read the files of `serve/ab/api/web`, by name: only what is listed here can be asked for."""
    assets = {}
    for entry in files("serve.ab.api").joinpath("web").iterdir():
        media_type = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type:
            body = entry.read_bytes()
            assets[entry.name] = Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return assets


def page_router() -> APIRouter:
    """Return the routes `/` and `/web/NAME`. No key guards them: nothing is in them that is not in the package."""
    router = APIRouter(include_in_schema=False)
    assets = read_assets()

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return answer(assets[INDEX], request)

    @router.api_route("/web/{name}", methods=["GET", "HEAD"])
    async def asset(name: str, request: Request) -> Response:
        if name == INDEX or name not in assets:
            return Response("not found\n", status_code=404, media_type="text/plain", headers=HEADERS)
        return answer(assets[name], request)

    return router


def answer(asset: Asset, request: Request) -> Response:
    """Return the file, or 304 where the browser has it."""
    headers = {**HEADERS, "ETag": asset.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)
