"""The files that one command writes and another reads: versioned, and read back strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mi_prun.errors import UserError
from mi_prun.files import write_text


class Record(BaseModel):
    """A part of an artefact. It is frozen, and refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Artefact(Record):
    """A JSON file with a schema name and version.

    Subclasses set `schema_name` and default `schema_version`; `read` refuses any other with a one-line error.
    """

    schema_name: ClassVar[str]
    schema_latest: ClassVar[int] = 1

    mi_prun_schema: str = ""
    schema_version: int = 1

    def model_post_init(self, context: Any) -> None:
        if not self.mi_prun_schema:
            object.__setattr__(self, "mi_prun_schema", self.schema_name)

    @classmethod
    def parse(cls, text: str, *, origin: str) -> Self:
        """Check the text of a file. Raises UserError with the first fault. origin: names the file in the message."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{origin} is not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("mi_prun_schema") != cls.schema_name:
            schema = data.get("mi_prun_schema") if isinstance(data, dict) else type(data).__name__
            article = "an" if cls.schema_name[0] in "aeiou" else "a"
            raise UserError(f"{origin} is not {article} {cls.schema_name} file (found {schema!r})")
        if data.get("schema_version") != cls.schema_latest:
            raise UserError(
                f"{origin} has schema version {data.get('schema_version')!r}, this release reads {cls.schema_latest}; "
                "make it again with this release"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "top level"
            raise UserError(f"{origin}: field {where}: {first['msg']}") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises UserError if it cannot be read, or is not what it should be."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        return cls.parse(text, origin=str(path))

    def to_json(self) -> str:
        """Return the text of the file."""
        return self.model_dump_json(indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_text(path, self.to_json())
