"""What vLLM finds wrong with its flags, up to its configuration, is one line; the model is fine and nothing starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mi_prun.errors import UserError
from mi_prun.process_group import free_port
from serve.served_model import served_model
from serve.server import run
from vllm_ext import compat


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `run` changes in a process that is the server's own."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    module = compat.server_module()
    monkeypatch.setattr(module, "build_app", module.build_app)
    yield
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--enable-auto-tool-choice"], r"^vLLM: --enable-auto-tool-choice requires --tool-call-parser$"),
        (["--config", "flags.txt"], r"^vLLM: .*(YAML|yaml)"),
        (["--max-model-len", "99999"], r"^vLLM: User-specified max_model_len \(99999\) is greater than"),
    ],
)
def test_one_line(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str) -> None:
    (tmp_path / "flags.txt").write_text("port: 1")
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(pruned), "--host", "127.0.0.1", "--port", str(free_port()), *flags]
    with pytest.raises(UserError, match=said) as raised:
        run(served_model(str(pruned)), words, tmp_path)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.usefixtures("as_it_was", "hub")
def test_a_model_that_the_hub_does_not_have_is_one_line(tmp_path: Path) -> None:
    words = ["--model", "owner/none", "--host", "127.0.0.1", "--port", str(free_port())]
    with pytest.raises(UserError, match=r"^vLLM: owner/none is not a local folder and is not a valid model identifier"):
        run(served_model("owner/none"), words, tmp_path)
