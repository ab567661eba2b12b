"""The command line: one way each, and an old spelling is refused in one line that names the new one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.cli import app
from mi_prun.console import run_app


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["compare", "a", "b", "--all"],
            "`mi-prun-bench compare` is called `mi-prun-bench diff`; write: mi-prun-bench",
        ),
        (["tasks", "m", "-o", "out", "--limit", "5"], "--limit is called --task-limit"),
        (["sweep", "--dense", "m", "-o", "out", "--materialise"], "--materialise is called --no-virtual"),
        (["run", "--dense", "m", "--pruned", "p", "q", "-o", "out"], "--pruned is gone; name the folders without it"),
        (["draft", "p.json", "--dense", "m", "-o", "out"], "give exactly one of --text TEXT and --prompts-from FILE"),
        (
            ["draft", "p.json", "--dense", "m", "--prompts-from", "f", "--input-tokens", "9", "-o", "out"],
            "--input-tokens does not go with --prompts-from",
        ),
        (["run", "--dense", "m", "-o", "out"], "PRUNED is missing: name at least one folder"),
    ],
)
def test_old_spellings(refusal: Callable[..., str], words: list[str], said: str) -> None:
    assert refusal(*words).startswith(f"error: {said}")


def test_old_spellings_are_not_in_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command, old in (("--help", "compare"), ("tasks", "--limit"), ("sweep", "--materialise"), ("run", "--pruned")):
        monkeypatch.setattr("sys.argv", ["mi-prun-bench", *dict.fromkeys((command, "--help"))])
        assert run_app(app) == 0
        words = capsys.readouterr().out.split()
        assert old not in words
        assert ("diff" if command == "--help" else "--serve-flags") in words
