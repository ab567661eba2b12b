"""Cut prompts out of a text. What a draft foresees depends on the text; of random tokens it foresees nothing."""

from __future__ import annotations

from collections.abc import Sequence

from mi_prun.errors import UserError
from mi_prun.model.model_folder import ModelFolder
from mi_prun.settings import SELF
from mi_prun.text.calibration import load_calibration

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
