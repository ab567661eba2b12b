"""Flags by argparse, with our own way with errors."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from mi_prun.errors import UserError


class FlagParser(argparse.ArgumentParser):
    """A parser that takes no abbreviations. A wrong flag is one line, without the usage."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **options | {"allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the flags")
