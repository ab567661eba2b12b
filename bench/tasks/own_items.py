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

AGREEMENT_ITEMS = 200
CAPITALS = {
    "Europe": "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria Vienna, Greece Athens, "
    "Hungary Budapest, Poland Warsaw, Sweden Stockholm, Norway Oslo, Denmark Copenhagen, Finland Helsinki, "
    "Ireland Dublin, Belgium Brussels, Switzerland Bern, Romania Bucharest, Bulgaria Sofia, Croatia Zagreb, "
    "Serbia Belgrade, Ukraine Kyiv, Russia Moscow, Iceland Reykjavik, Albania Tirana, Latvia Riga, Estonia Tallinn",
    "Asia": "China Beijing, Japan Tokyo, India Delhi, Thailand Bangkok, Vietnam Hanoi, Indonesia Jakarta, "
    "Turkey Ankara, Pakistan Islamabad, Bangladesh Dhaka, Nepal Kathmandu, Iran Tehran, Iraq Baghdad, Syria Damascus, "
    "Jordan Amman, Lebanon Beirut, Afghanistan Kabul, Mongolia Ulaanbaatar, Qatar Doha, Oman Muscat, Armenia Yerevan, "
    "Azerbaijan Baku",
    "Africa": "Egypt Cairo, Kenya Nairobi, Nigeria Abuja, Ghana Accra, Senegal Dakar, Morocco Rabat, Tunisia Tunis, "
    "Libya Tripoli, Sudan Khartoum, Uganda Kampala, Rwanda Kigali, Zambia Lusaka, Zimbabwe Harare, Angola Luanda, "
    "Mozambique Maputo, Somalia Mogadishu, Mali Bamako, Namibia Windhoek",
    "America": "Canada Ottawa, Cuba Havana, Jamaica Kingston, Peru Lima, Chile Santiago, Colombia Bogotá, "
    "Venezuela Caracas, Ecuador Quito, Uruguay Montevideo, Paraguay Asunción, Nicaragua Managua, Honduras Tegucigalpa",
}
ASKED = ("The capital of {} is the city of", "Q: Which city is the capital of {}?\nA:")
CAPITAL_CHOICES = 4
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


def capitals() -> list[dict[str, Any]]:
    """Each country in two ways."""
    drawn = random.Random(0)
    rows = []
    for pairs in CAPITALS.values():
        cities = dict(pair.split(" ") for pair in pairs.split(", "))
        for country, asked in itertools.product(cities, ASKED):
            others = drawn.sample(sorted(set(cities.values()) - {cities[country]}), CAPITAL_CHOICES - 1)
            rows.append(_row(drawn, asked.format(country), [cities[country], *others]))
    return rows


def agreement() -> list[dict[str, Any]]:
    """Return items on agreement: as many with a subject in the plural as in the singular."""
    drawn = random.Random(0)
    whole = list(itertools.product(SUBJECTS, BETWEEN, VERBS))
    rows = []
    for number, (subject, (place, nouns), verbs) in enumerate(drawn.sample(whole, AGREEMENT_ITEMS)):
        plural = number % 2
        query = f"The {subject[plural]} {place} {nouns[1 - plural]}"
        rows.append(_row(drawn, query, [verbs[plural], verbs[1 - plural]]))
    return rows


def _row(drawn: random.Random, query: str, choices: list[str]) -> dict[str, Any]:
    """The right choice is the first of those given."""
    right = choices[0]
    drawn.shuffle(choices)
    return {"query": query, "choices": choices, "gold": choices.index(right)}
