"""`mi-prun-serve` refuses what it can before vLLM is imported: one line, exit status 2."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mi_prun.checkpoint.inspection import read_manifest
from serve.cli import vllm_flag


def serve(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve.cli", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--model is missing"),
        (("--model", "./nothing"), "no such folder"),
        (("--model", "owner/name", "--plan", "p", "--draft", "d"), "--plan and --draft exclude each other"),
        (("--model", "owner/name", "--draft", "d", "--adapter", "a"), "--adapter does not go with --draft"),
        (("--model", "owner/name", "--adapter", "a"), "--adapter needs --plan"),
        (("--model", "owner/name", "--assume-uniform"), "--assume-uniform needs --plan or --draft"),
        (("--model", "owner/name", "--draft-tokens", "2"), "--draft-tokens needs --draft"),
        (("--model", "m", "--draft", "d", "--draft-tokens", "0"), "--draft-tokens must be at least 1, got 0"),
        (("--model", "./nothing", "--plan", "plan.json"), "cannot read plan.json"),
        (
            ("--model", "owner/name", "--plan", "p", "--download_dir=/data"),
            "--download-dir does not go with --plan or --draft",
        ),
        (("--model", "owner/name", "--port", "0"), "--port must be in 1..65535, got 0"),
        (("--model", "owner/name", "--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
        (("--model", "owner/name", "--host", "no.such.invalid"), "--host 'no.such.invalid': "),
        (("--port", "abc"), "argument --port: invalid int value: 'abc'; `mi-prun-serve --help` lists the flags"),
        (("--model", "a/b", "--plan", "p", "--revision", "main"), "--revision does not go with --plan or --draft"),
    ],
)
def test_one_line_and_status_2(words: tuple[str, ...], said: str) -> None:
    done = serve(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use(reference: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve("--model", reference, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "Address already in use; choose another --port" in done.stderr


@pytest.mark.parametrize("wrong", ["version", "port"])
@pytest.mark.parametrize("flag", [None, "--plan", "--draft"])
def test_a_wrong_version_or_port_is_said_before_the_hub_is_asked(
    pruned: Path, tmp_path: Path, wrong: str, flag: str | None
) -> None:
    """Another vLLM's metadata comes first on the path; a hub that would answer nothing waits for a call."""
    plan, installed = tmp_path / "plan.json", tmp_path / "installed"
    read_manifest(pruned).plan.write(plan)
    (installed / "vllm-0.24.0.dist-info").mkdir(parents=True)
    (installed / "vllm-0.24.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.24.0\n"
    )
    path = os.pathsep.join([str(installed)] * (wrong == "version") + [os.environ.get("PYTHONPATH", "")])
    with socket.create_server(("127.0.0.1", 0)) as hub:
        here = str(hub.getsockname()[1])
        words = ["--model", "owner/name", *([flag, str(plan)] if flag else [])]
        done = serve(
            *words,
            *(["--port", here] if wrong == "port" else []),
            PYTHONPATH=path,
            HF_ENDPOINT=f"http://127.0.0.1:{here}",
            HF_HUB_CACHE=str(tmp_path / "cache"),
            HF_HUB_OFFLINE="0",
            NO_PROXY="127.0.0.1",
        )
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):
            hub.accept()
    said = {
        "version": "error: vLLM 0.24.0 is not supported; supported are 0.25 to 0.33: install one of these",
        "port": "error: cannot listen",
    }
    assert done.returncode == 2
    assert done.stderr.startswith(said[wrong])
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


def test_help_shows_an_example() -> None:
    done = serve("--help")
    assert done.returncode == 0
    assert "mi-prun-serve --model pruned/" in done.stdout


def test_a_spoilt_dense_model_starts_nothing(prune: Callable[..., Path], reference: Path, tmp_path: Path) -> None:
    """The whole way: one line, exit status 2, no engine, no folder left behind."""
    dense = Path(shutil.copytree(reference, tmp_path / "dense"))
    virtual = prune(dense, tmp_path / "virtual", [2], virtual=True)
    (dense / "config.json").write_text((dense / "config.json").read_text().replace("1e-06", "1e-05"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = serve("--model", virtual, TMPDIR=str(scratch))
    assert done.returncode == 2
    assert "another model (its config differ)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--load-format", "dummy"], "dummy"),
        (["--max-model-len", "64", "--load-format=dummy"], "dummy"),
        (["--load_format", "auto"], "auto"),
        (["--enforce-eager"], None),
    ],
)
def test_a_flag_among_vllms_own(flags: list[str], value: str | None) -> None:
    assert vllm_flag(flags, "--load-format") == value
