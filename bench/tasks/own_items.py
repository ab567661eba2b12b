"""Items of two zero-shot tasks of our own, for where no data set can be had: made by a program, the same everywhere.

- `capitals`: what the model knows. The capital of a country, among four of the same continent.
- `agreement`: what it knows of grammar. The verb that goes with the subject, with a noun of the other number between
  them (the test of Linzen et al., 2016, arXiv:1611.01368).

They are chosen for what a small model can do and loses when blocks go: of four answers a guess is right one time in
four, of two every other time.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

from mi_prun.files import write_text
from mi_prun.recovery.capitals import capitals, choice_item

AGREEMENT_ITEMS = 200
# Singular and plural.
NOUNS = "key author teacher farmer painting report bridge picture king manager tree senator doctor driver singer lawyer"
SUBJECTS = [(noun, f"{noun}s") for noun in NOUNS.split()]
PLACES = ("near the", "behind the", "next to the", "beside the")
BETWEEN = list(itertools.product(PLACES, (("cabinet", "cabinets"), ("house", "houses"), ("guard", "guards"))))
VERBS = [("is", "are"), ("was", "were"), ("has", "have")]


def write_items(folder: Path) -> None:
    """Write `capitals.jsonl` and `agreement.jsonl` into a folder that is there."""
    for name, rows in (("capitals", capitals()), ("agreement", agreement())):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def agreement() -> list[dict[str, Any]]:
    """Return items on agreement: as many with a subject in the plural as in the singular."""
    drawn = random.Random(0)
    whole = list(itertools.product(SUBJECTS, BETWEEN, VERBS))
    rows = []
    for number, (subject, (place, nouns), verbs) in enumerate(drawn.sample(whole, AGREEMENT_ITEMS)):
        plural = number % 2
        query = f"The {subject[plural]} {place} {nouns[1 - plural]}"
        rows.append(choice_item(drawn, query, [verbs[plural], verbs[1 - plural]]))
    return rows
