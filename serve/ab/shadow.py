"""A share of the requests, mirrored to another arm, and what came of it."""

from __future__ import annotations

from serve.ab.observation import Observation


class Mirror:
    def keep(self, part: bytes) -> None: ...

    def primary_ended(self, told: Observation) -> None: ...
