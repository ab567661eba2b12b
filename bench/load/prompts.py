"""Take prompts from a text: pieces of it, or the rows of a file, each as a user would send it.

How much a draft predicts depends on the text. Random tokens cannot be predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mi_prun.errors import UserError
from mi_prun.model.model_folder import ModelFolder
from mi_prun.settings import SELF
from mi_prun.text.calibration import begins_with_bos, load_calibration
from mi_prun.text.text_source import text_source

Rounds = Sequence[Sequence[str]]


def prompts_of(folder: ModelFolder, text: str, counts: Sequence[int], tokens: int) -> tuple[str, Rounds]:
    """Return the text's short name, and for each round as many pieces of it as it has requests. No piece comes twice.

    tokens: in a piece, about, as the piece is given as text and the server makes tokens of it again. Raises UserError
    where the text is too short.
    """
    if text == SELF:
        raise UserError("--text self would need the model in this process too; name a file or a data set")
    wanted = sum(counts)
    calibration = load_calibration(
        text,
        tokenizer := folder.tokenizer,
        window_tokens=tokens,
        scoring_tokens=wanted * tokens,
        ranking_tokens=1,
        held_out_tokens=1,
        seed=0,
    )
    pieces = tokenizer.batch_decode(calibration.scoring.tokens, skip_special_tokens=True)
    if len(pieces) < wanted:
        raise UserError(
            f"--text {text} gives {len(pieces)} prompts of {tokens} tokens, and {wanted} are asked for: give more "
            "text, or ask for fewer --prompts, --rounds or --input-tokens"
        )
    rest = iter(pieces)
    return calibration.description.source, [[next(rest) for _ in range(count)] for count in counts]


@dataclass(frozen=True)
class OwnPrompts:
    """Prompts with their own lengths. name: the file's, without its folder. tokens: of each text."""

    name: str
    texts: tuple[str, ...]
    tokens: tuple[int, ...]


MOST_PROMPTS = 65_536  # of a file; no sweep asks for as many


def own_prompts(folder: ModelFolder, path: Path) -> OwnPrompts:
    """Read the rows of a file as prompts. Chat turns go through the chat template, up to where the answer begins.

    Raises UserError for a file that cannot be read, or has no row with a text.
    """
    if not path.is_file():
        raise UserError(f"--prompts-from {path}: no such file; give JSON lines with `messages` or `text`")
    tokenizer = folder.tokenizer
    source = text_source(str(path), tokenizer=_Asking(tokenizer))
    bos = tokenizer.bos_token if begins_with_bos(tokenizer) else ""  # a template's own; the server puts one before it
    asked = (text.removeprefix(bos) for text in source.open() if text.strip())
    texts = tuple(islice(asked, MOST_PROMPTS))
    if not texts:
        raise UserError(f"--prompts-from {path} holds no prompt; give JSON lines with `messages` or `text`")
    return OwnPrompts(source.name, texts, tuple(map(len, tokenizer(list(texts), verbose=False)["input_ids"])))


class _Asking:
    """A tokenizer whose chat template ends where the model's answer begins."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template

    def apply_chat_template(self, turns: list[dict[str, str]], tokenize: bool) -> Any:
        return self._tokenizer.apply_chat_template(turns, tokenize=tokenize, add_generation_prompt=True)
