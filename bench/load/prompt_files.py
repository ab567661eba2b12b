"""Write the prompts of loads that bring their own into files that vLLM's benchmark reads.

The prompts have the lengths of a trace, or are pieces of a text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.load.prompts import OwnPrompts, prompts_of
from bench.load.trace import Request, write_timed_trace
from bench.records.schema import Workload
from mi_prun.errors import UserError
from mi_prun.files import write_text
from mi_prun.model.model_folder import ModelFolder


class Prompts:
    """The prompts of a run.

    requests: of the trace. pieces: of the text, for each preset; each is used once, in the order of first need.
    """

    def __init__(self, requests: list[Request], pieces: dict[str, Sequence[str]]) -> None:
        self._requests = requests
        self._rest = {preset: iter(own) for preset, own in pieces.items()}
        self._by_seed: dict[int, list[str]] = {}

    def write(self, path: Path, load: Workload, seed: int) -> None:
        """Write a round's prompts to a file. The same seed gives the same prompts, on whichever engine."""
        if load.text is None:
            write_timed_trace(path, self._requests, load.prompts, seed)
            return
        if seed not in self._by_seed:
            self._by_seed[seed] = [next(self._rest[load.preset]) for _ in range(load.prompts)]
        write_text(path, "".join(json.dumps({"prompt": piece}) + "\n" for piece in self._by_seed[seed]))


def text_prompts(
    dense: ModelFolder, text: str, loads: Sequence[Workload], rounds: int
) -> tuple[str, dict[str, Sequence[str]]]:
    """Return the short name of a text, and pieces of it for all rounds and warm-ups of the loads, by preset.

    dense: whose tokenizer counts the tokens. Raises UserError where the text is too short for one of the presets.
    """
    name = ""
    pieces: dict[str, Sequence[str]] = {}
    for preset in dict.fromkeys(load.preset for load in loads):
        own = [load for load in loads if load.preset == preset]
        name, (pieces[preset],) = prompts_of(dense, text, [_count(own, rounds)], round(own[0].input_tokens))
    return name, pieces


def row_prompts(own: OwnPrompts, loads: Sequence[Workload], rounds: int) -> dict[str, Sequence[str]]:
    """Return prompts that have their own lengths, for the one preset of the loads. Raises UserError for too few."""
    if (wanted := _count(loads, rounds)) > len(own.texts):
        raise UserError(
            f"{own.name} has {len(own.texts)} prompts, and {wanted} are asked for, warm-ups included: give more, or "
            "ask for fewer --prompts, --rounds or --concurrency"
        )
    return {loads[0].preset: own.texts}


def _count(loads: Sequence[Workload], rounds: int) -> int:
    """How many prompts the loads take. None is sent twice: the prefix cache would answer it."""
    return sum(load.warmups + rounds * load.prompts for load in loads)
