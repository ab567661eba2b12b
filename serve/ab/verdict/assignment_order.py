"""Outcomes in the order in which their requests were assigned.

A fast outcome comes back before a slow one that was asked for earlier. Whoever counts outcomes as they come sees too
many fast ones, as long as slow ones are in flight. A sequential test must not see that: it is valid in the order of
assignment, which depends on no outcome, and at any point of that order (Ville's inequality holds at all of them).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

WAIT_S = 900.0  # longer than any wait for a first byte; a stream may last longer
ROOM_BYTES = 64 * 2**20
PLACE_BYTES = 250  # about what a place takes in memory

Item = TypeVar("Item")


@dataclass
class _Place(Generic[Item]):
    begun: float
    ended: bool = False
    item: Item | None = None
    size_bytes: int = 0


class AssignmentOrder(Generic[Item]):
    """A queue that gives out what ended once everything before it has ended.

    The wait is bounded, in seconds and in memory. Past the bound the first request is overtaken: the others wait for it
    no more, and its item is given out when it ends.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.waiting = 0  # ended, not given out
        self._clock = clock
        self._places: OrderedDict[int, _Place[Item]] = OrderedDict()
        self._overtaken: set[int] = set()
        self._bytes = 0

    def begin(self, sequence: int) -> None:
        """Take a place at the end. sequence: a number of the request's own."""
        self._places[sequence] = _Place(self._clock())

    def end(self, sequence: int, item: Item | None, size_bytes: int = 0) -> list[Item]:
        """Return the items that nothing is waited for any more, in order.

        item: None leaves the place empty. size_bytes: about what the item takes in memory. A request that is not known
        gives nothing.
        """
        if sequence in self._overtaken:
            self._overtaken.remove(sequence)
            return [] if item is None else [item]
        place = self._places.get(sequence)
        if place is None or place.ended:
            return []
        place.ended, place.item, place.size_bytes = True, item, PLACE_BYTES + size_bytes
        self.waiting += 1
        self._bytes += place.size_bytes
        return self._given_out()

    @property
    def oldest_s(self) -> float:
        """Age of the request that is waited for, in seconds; 0 where none is."""
        first = next(iter(self._places.values()), None)
        return 0.0 if first is None else self._clock() - first.begun

    def _given_out(self) -> list[Item]:
        items = []
        while self._places:
            sequence, place = next(iter(self._places.items()))
            if place.ended:
                self.waiting -= 1
                self._bytes -= place.size_bytes
                if place.item is not None:
                    items.append(place.item)
            elif self._bytes > ROOM_BYTES or self._clock() - place.begun > WAIT_S:
                self._overtaken.add(sequence)
            else:
                break
            del self._places[sequence]
        return items
