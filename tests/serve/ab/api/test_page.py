"""The page's files: what they are served as, under which policy, and that nothing else can be asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.ab.api import page
from serve.ab.api.page import CONTENT_SECURITY_POLICY, page_router, read_assets

WEB = Path(page.__file__).parent / "web"


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page_router())
    return TestClient(app)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/web/app.js", "text/javascript"),
        ("/web/style.css", "text/css"),
        ("/web/icon.svg", "image/svg+xml"),
    ],
)
def test_every_file_comes_with_the_policy(client: TestClient, path: str, media_type: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert client.head(path).status_code == 200


def test_the_policy_opens_nothing_but_this_server() -> None:
    sources = dict(part.split(" ", 1) for part in CONTENT_SECURITY_POLICY.split("; "))
    assert sources["default-src"] == "'none'"
    assert all(word not in CONTENT_SECURITY_POLICY for word in ("unsafe", "http", "*"))
    assert {sources[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert {sources[name] for name in ("frame-ancestors", "base-uri", "form-action")} == {"'none'"}


def test_a_file_that_is_known_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/web/app.js")
    again = client.get("/web/app.js", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/web/app.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2fpage.py", "%2e%2e/page.py", ".", "app.js%00"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/web/{name}").status_code == 404


def test_nothing_in_the_files_is_inline_or_of_another_host() -> None:
    names = set(read_assets())
    assert {"index.html", "app.js", "style.css"} <= names
    for path in WEB.iterdir():
        text = path.read_text()
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text.replace("http://www.w3.org/2000/svg", "")), (
            path.name
        )
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), (
            path.name
        )
        assert not re.search(r"<[^>]+\s(style|on[a-z]+)=|<style|<script(?![^>]*\ssrc=)", text), path.name
        for imported in re.findall(r'(?:from|import) "\./([^"]+)"', text):
            assert imported in names
