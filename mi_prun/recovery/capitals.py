"""Items of a choice task that needs no data set: the capital of a country, among four of the same continent."""

from __future__ import annotations

import itertools
import random
from typing import Any

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


def capitals() -> list[dict[str, Any]]:
    """Each country in two ways."""
    drawn = random.Random(0)
    rows = []
    for pairs in CAPITALS.values():
        cities = dict(pair.split(" ") for pair in pairs.split(", "))
        for country, asked in itertools.product(cities, ASKED):
            others = drawn.sample(sorted(set(cities.values()) - {cities[country]}), CAPITAL_CHOICES - 1)
            rows.append(choice_item(drawn, asked.format(country), [cities[country], *others]))
    return rows


def choice_item(drawn: random.Random, query: str, choices: list[str]) -> dict[str, Any]:
    """An item with its choices in an order drawn; the right one is the first of those given."""
    right = choices[0]
    drawn.shuffle(choices)
    return {"query": query, "choices": choices, "gold": choices.index(right)}
