"""The experiment read and changed while it runs."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest


@pytest.fixture
def own(start_fakes: Callable[..., Any], start_proxy: Callable[..., Any]) -> Any:
    """With one arm that runs; the other one's weight is 0."""
    return start_proxy(start_fakes("dense", "pruned"))


def test_live_control(own: Any, admin: dict[str, str]) -> None:
    status, headers, answer = own.call("/admin/experiment", None, admin)
    assert (status, headers["etag"], answer["state"]["version"]) == (200, '"1"', 1)
    assert answer["state"]["weights"] == {"dense": 1.0, "pruned": 0.0}
    assert [arm["name"] for arm in answer["arms"]] == ["dense", "pruned"]

    def put(body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        status, _, answer = own.call("/admin/experiment", body, {**admin, **(headers or {})}, "PUT")
        return status, answer

    # Whoever does not say which version is meant, or means another one, changes nothing.
    assert put({"paused": True})[0] == 428
    assert put({"paused": True}, {"If-Match": '"9"'})[0] == 412
    assert put({"paused": True, "version": 9})[0] == 409
    assert put({"paused": True, "version": 2}, {"If-Match": '"1"'})[0] == 412
    assert put({"weights": {"dense": 0}, "version": 1})[0] == 400
    assert put({"weights": {"other": 1}, "version": 1})[0] == 400
    assert put({"weights": {"dense": "1"}, "version": 1})[0] == 422
    assert put({"weight": {}, "version": 1})[0] == 422
    for body in (
        {"version": math.nan},
        {"version": 1, "weights": {"a": math.inf}},
        {"version": 1, "why": "\ud800"},
        {"\ud800": 1},
    ):
        status, answer = put(body)  # what cannot be written as JSON is not repeated
        assert status == 422
        assert answer["detail"][0].keys() == {"type", "loc", "msg"}
    assert own.experiment()["state"]["version"] == 1

    assert own.ask()[1]["x-mi-prun-arm"] == "dense"
    status, answer = put({"weights": {"dense": 0, "pruned": 1}, "why": "all in"}, {"If-Match": '"1"'})
    assert (status, answer["state"]["version"]) == (200, 2)
    assert own.ask()[1]["x-mi-prun-arm"] == "pruned"
    assert own.experiment(paused=True)["state"]["weights"] == {"dense": 0.0, "pruned": 1.0}
    assert (own.ask()[1]["x-mi-prun-arm"], own.ask()[1]["x-mi-prun-reason"]) == ("dense", "paused")
    changes = own.experiment()["changes"]
    assert [(change["version"], change["who"], change["why"]) for change in changes] == [
        (3, "admin", ""),
        (2, "admin", "all in"),
        (1, "config", "start"),
    ]
    assert "experiment default is version 2 now, by admin (all in): dense=0, pruned=1" in own.log.read_text()


def test_a_change_that_meets_a_full_disk_is_not_made(own: Any, admin: dict[str, str]) -> None:
    """No file of the process may grow or be written; everything is answered, and the next change is made."""
    process = psutil.Process(own.group.process.pid)
    _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    change = {"weights": {"dense": 0, "pruned": 1}, "version": 1}
    status, _, answer = own.call("/admin/experiment", change, admin, "PUT")
    assert (status, "cannot be written, and nothing was changed" in answer["detail"]) == (507, True)
    assert own.experiment()["state"]["version"] == 1
    assert own.ask()[1]["x-mi-prun-arm"] == "dense"
    process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
    assert own.call("/admin/experiment", change, admin, "PUT")[0] == 200
    assert own.ask()[1]["x-mi-prun-arm"] == "pruned"


def test_a_guardrail_that_cannot_act_is_said(start_proxy: Callable[..., Any], shared_fakes: list[Any]) -> None:
    proxy = start_proxy(shared_fakes, "--guardrail", "agreement>0.6", "--host", "0.0.0.0")
    said = "guardrail agreement>0.6 cannot act: nothing is mirrored while the shadow share is 0"
    assert proxy.experiment()["notes"] == [said]
    assert proxy.log.read_text().count(said) == 1
    assert proxy.experiment(shadow_share=0.5)["notes"] == []
    assert proxy.experiment(shadow_share=0.0)["notes"] == [said]
    assert proxy.log.read_text().count(said) == 2
    assert "no API keys are set: whoever reaches 0.0.0.0:" in proxy.log.read_text()


@pytest.mark.long
def test_its_own_openapi_document(own: Any, admin: dict[str, str]) -> None:
    """schemathesis: what it says is what it does, whatever is sent; to whom it refuses most of it too, at once."""
    tool = str(Path(sys.executable).with_name("schemathesis"))
    settings = ["--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
    run = [tool, *settings, "run", f"{own.url}/openapi.json", "--seed", "7", "--no-color", "--max-examples"]
    callers = ["5", "-H", f"Authorization: {admin['Authorization']}"], ["1"]
    started = [
        subprocess.Popen([*run, *caller], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=own.folder)
        for caller in callers
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-4000:] for text in said)
    assert "Traceback" not in own.log.read_text()


def test_without_an_admin_key_it_is_closed(start_proxy: Callable[..., Any], shared_fakes: list[Any]) -> None:
    proxy = start_proxy(shared_fakes, env={"MI_PRUN_AB_ADMIN_KEY": ""})
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer admin-key-of-the-tests"}):
        assert proxy.call("/admin/experiment", None, headers)[0] == 403
    assert proxy.ask(model="the-model@dense")[0] == 403
