"""Continuations: what the options mean, prompts of a file, and what an endpoint is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.records.task_schema import Continuation
from bench.tasks.generations import continuations, read_prompts, sampling_of
from bench.tasks.task_settings import PROMPTS, Sampling
from mi_prun.errors import UserError


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("Once upon a time\n\n  The sea \n")
    assert read_prompts(file) == ("Once upon a time", "The sea")
    file.write_text("\n")
    with pytest.raises(UserError, match="has no prompt"):
        read_prompts(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path)
    assert sampling_of(0, 0.7, 0, None) is None
    for tokens, temperature, said in ((-1, 0.7, "--generate must be"), (8, 3.0, r"--temperature must be in \[0, 2\]")):
        with pytest.raises(UserError, match=said):
            sampling_of(tokens, temperature, 0, None)


def test_what_the_options_say() -> None:
    assert sampling_of(8, 0.0, 5, ("a",)) == Sampling(("a",), 8, 0.0, 5)
    assert sampling_of(1, 2.0, 0, None) == Sampling(PROMPTS, 1, 2.0, 0)
    assert sampling_of(0, 2.0, 0, ("a",)) is None
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"--temperature must be in \[0, 2\], got "):
            sampling_of(8, temperature, 0, None)


def test_a_line_is_what_ends_with_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("one\r\ntwo\u2028halves\fof it\r\n".encode())
    assert read_prompts(path) == ("one", "two\u2028halves\fof it")
    path.write_bytes(b"\xef\xbb\xbfone\n")
    assert read_prompts(path) == ("one",)


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    path = tmp_path / "prompts.bin"
    path.write_bytes(b"\xff\xfe")
    for place, said in ((path, "cannot be read: .*utf-8"), (tmp_path / "absent", "cannot be read: No such file")):
        with pytest.raises(UserError, match=f"--prompts {place} {said}"):
            read_prompts(place)


def test_every_prompt_is_continued_by_the_same_seed() -> None:
    asked: list[Any] = []

    class Answering:
        def complete(self, prompt: str, **sampling: Any) -> str:
            asked.append(sampling)
            return prompt.upper()

    sampling = Sampling(("b", "a", "b"), 8, 0.5, 3)
    assert continuations(Answering(), sampling) == tuple(  # type: ignore[arg-type]
        Continuation(prompt=prompt, text=prompt.upper()) for prompt in ("b", "a", "b")
    )
    assert asked == [{"max_tokens": 8, "temperature": 0.5, "seed": 3}] * 3
