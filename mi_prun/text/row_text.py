"""What a row of a data set says as text. One rule for JSON lines, Parquet files and data sets of the hub:

- A string is the text.
- Chat turns (a list of objects with the strings `role` and `content`) go through the tokenizer's chat template. Without
  a template they are written as `role: content`, a blank line between turns. A model without a template has no format
  of its own for turns: to it a chat is plain text like any other. Further keys of a turn are not text and not used.
- Null and an empty list of turns say nothing: the row is left out, and the number of such rows is told.
- Anything else is refused with its row and field. It never becomes text by `str()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from mi_prun.console import say
from mi_prun.errors import UserError, first_line

FILE = "calibration text "  # before a file's path in messages
USUAL_FIELDS = ("text", "messages")  # taken where no field is named, in this order

Row = Mapping[str, object]
Format = Callable[[list[dict[str, str]]], str]


def row_texts(
    origin: str, rows: Iterable[tuple[str, Row]], field: str | None = None, tokenizer: Any = None
) -> Iterator[str]:
    """Yield the texts of rows; rows without one are left out and counted.

    origin: what the rows are of, for messages. rows: pairs of a place, like `line 3`, and the row. field: None takes
    the one that the first row with a text names (`text_field`). tokenizer: whose chat template writes chat turns.
    Raises UserError for a value that is neither text nor chat turns.
    """
    skipped = 0
    write = chat_format(tokenizer)
    try:
        for place, row in rows:
            if field is None and _tells_no_field(row):
                skipped += 1
                continue
            field = field or text_field(row, origin)
            text = value_text(_value(row, field, f"{origin}: {place}"), write)
            if text is None:
                skipped += 1
            else:
                yield text
    except NotTextError as error:
        raise UserError(f"{origin}: {place}, field {field!r} {error}") from error
    except GeneratorExit:  # the reader has enough
        _tell_skipped(origin, field, skipped)
        raise
    _tell_skipped(origin, field, skipped)


def text_field(row: Row, origin: str) -> str:
    """Return the field that holds the text: a usual one, else the only one with a string.

    Raises UserError where it cannot be told which field is meant.
    """
    usual = next((name for name in USUAL_FIELDS if name in row), None)
    if usual is not None:
        return usual
    strings = _strings(row)
    if len(strings) != 1:
        names = ", ".join(strings) or "none"
        raise UserError(f"{origin}: which field is the text? ({names}); name it: {origin.removeprefix(FILE)}:FIELD")
    return strings[0]


def _strings(row: Row) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, str)]


def _tells_no_field(row: Row) -> bool:
    """Return whether every field of the row that may be the text is null."""
    return None in row.values() and not _strings(row) and not any(name in row for name in USUAL_FIELDS)


def value_text(value: object, write: Format) -> str | None:
    """Return what a value says as text, None where it says nothing. write: makes one text of chat turns."""
    if value is None or (isinstance(value, list) and not value):
        return None
    if not isinstance(value, list):
        return plain_text(value)
    try:
        return _unicode(write([_turn(number, turn) for number, turn in enumerate(value, 1)]))
    except NotTextError:
        raise
    except Exception as error:  # a template is the model's own code: it may raise anything
        raise NotTextError(
            f"holds chat turns that the tokenizer's chat template refuses: {first_line(error)}"
        ) from error


def plain_text(value: object) -> str:
    """Return a string that is text as it is. Raises NotTextError for any other value, and for no valid Unicode."""
    if not isinstance(value, str):
        raise NotTextError(f"holds {_kind(value)}, not text")
    return _unicode(value)


def chat_format(tokenizer: Any = None) -> Format:
    """Return what makes one text of chat turns: the tokenizer's chat template, else `plain_turns`."""
    if not getattr(tokenizer, "chat_template", None):
        return plain_turns
    return lambda turns: str(tokenizer.apply_chat_template(turns, tokenize=False))


def plain_turns(turns: list[dict[str, str]]) -> str:
    """Join turns as plain text, each after its role."""
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


class NotTextError(Exception):
    """A value that is no text; the message goes on from the name of its field."""


def _value(row: Row, field: str, place: str) -> object:
    if field not in row:
        raise UserError(f"{place} has no field {field!r}; there are {', '.join(map(str, row)) or 'none'}")
    return row[field]


def _turn(number: int, turn: object) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise NotTextError(f"holds a list whose entry {number} is {_kind(turn)}, not a chat turn (role, content)")
    words: dict[str, str] = {}
    for name in ("role", "content"):
        value = turn.get(name)
        if not isinstance(value, str):
            raise NotTextError(f"holds a list whose entry {number} is no chat turn: {name!r} is {_kind(value)}")
        words[name] = value
    return words


def _kind(value: object) -> str:
    """Name the kind of a value in JSON's terms."""
    if value is None:
        return "null or missing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"a value of type {type(value).__name__}"


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise NotTextError(
            f"is no valid Unicode: character {error.start + 1} is half of a surrogate pair (\\u{code:04x})"
        ) from error
    return text


def _tell_skipped(origin: str, field: str | None, count: int) -> None:
    if count:
        where = f"in field {field!r}" if field else "in any field"
        _say_once(f"{origin}: {count:,} {'row has' if count == 1 else 'rows have'} no text {where}; left out")


@cache
def _say_once(line: str) -> None:
    """Say a line once in this process: some readers go through a text several times."""
    say(line)
