"""One rule for the values of a row, whatever file or data set it lies in: text, chat turns, nothing, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_prun.errors import UserError
from mi_prun.model.model_folder import open_model
from mi_prun.text import row_text
from mi_prun.text.row_text import row_texts
from mi_prun.text.text_source import text_source

ASK = {"role": "user", "content": "How many ships?"}
TELL = {"role": "assistant", "content": "Three."}
TEMPLATE = (
    "{% for turn in messages %}{% if turn.role not in ('user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + turn.role) }}{% endif %}<{{ turn.role }}>{{ turn.content }}</s>{% endfor %}"
)


@pytest.fixture
def tokenizer(reference: Path) -> Any:
    return open_model(reference).tokenizer


@pytest.fixture
def chat_tokenizer(tokenizer: Any) -> Any:
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(autouse=True)
def said_anew() -> Iterator[None]:
    yield
    row_text._say_once.cache_clear()


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    """The rows in a file of that kind, or in a data set of one; what names it up to the field."""
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
        return str(folder / "rows.parquet")
    place = folder / "set" if kind == "set" else folder
    place.mkdir(exist_ok=True)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{place}::train" if kind == "set" else str(place / "rows.jsonl")


def read(source: str, tokenizer: Any = None) -> list[str]:
    return sorted(text_source(source, tokenizer=tokenizer).open())


KINDS = pytest.mark.parametrize("kind", ["jsonl", "parquet", "set"])


@KINDS
def test_a_string_is_the_text(tmp_path: Path, kind: str) -> None:
    texts = ["None", "", "[{'role': 'user'}]", "ships\n\n\n\nmore \u2028 ships"]
    source = write(tmp_path, kind, [{"text": text, "number": 3} for text in texts])
    assert read(f"{source}:text") == sorted(texts)


@KINDS
def test_rows_of_null_are_left_out_and_counted(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, kind, [{"text": None}, {"text": "one"}, {"text": None}, {"text": "two"}])
    assert read(f"{source}:text") == ["one", "two"]
    assert read(f"{source}:text") == ["one", "two"]
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 1  # though it was read twice
    assert said[0].endswith("2 rows have no text in field 'text'; left out")


@KINDS
def test_chat_turns_go_through_the_chat_template(tmp_path: Path, kind: str, chat_tokenizer: Any) -> None:
    source = write(tmp_path, kind, [{"id": "a", "messages": [ASK, TELL]}, {"id": "b", "messages": [ASK | {"x": 1}]}])
    wanted = ["<user>How many ships?</s>", "<user>How many ships?</s><assistant>Three.</s>"]
    assert read(f"{source}:messages", chat_tokenizer) == wanted
    if kind != "set":  # which needs a field
        assert read(source, chat_tokenizer) == wanted  # the usual name, before the only field of strings


@KINDS
def test_without_a_template_turns_are_written_plainly(tmp_path: Path, kind: str, tokenizer: Any) -> None:
    source = write(tmp_path, kind, [{"turns": [ASK, TELL]}])
    assert not tokenizer.chat_template
    for without in (None, tokenizer):
        assert read(f"{source}:turns", without) == ["user: How many ships?\n\nassistant: Three."]


@KINDS
def test_no_turns_say_nothing(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, kind, [{"turns": [ASK]}, {"turns": []}])
    assert read(f"{source}:turns") == ["user: How many ships?"]
    assert "1 row has no text in field 'turns'" in capsys.readouterr().err


@KINDS
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "holds a number, not text"),
        (True, "holds true or false, not text"),
        ({"text": "ships"}, "holds an object, not text"),
        (["one", "two"], "holds a list whose entry 1 is a string, not a chat turn"),
        ([[ASK]], "holds a list whose entry 1 is a list, not a chat turn"),
        ([{"from": "human", "value": "ships"}], "entry 1 is no chat turn: 'role' is null or missing"),
        ([ASK, {"role": "assistant", "content": None}], "entry 2 is no chat turn: 'content' is null or missing"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "entry 1 is no chat turn: 'content' is a list",
        ),
    ],
)
def test_anything_else_is_refused_with_its_row_and_field(tmp_path: Path, kind: str, value: Any, said: str) -> None:
    source = write(tmp_path, kind, [{"field": value}])
    with pytest.raises(UserError, match=rf"(line|row) 1.*, field 'field' .*{said}") as error:
        read(f"{source}:field")
    assert "\n" not in str(error.value)


def test_the_row_that_is_refused_is_the_one_named(tmp_path: Path) -> None:
    lines = write(tmp_path, "jsonl", [{"text": "a"}, {"text": "b"}, {"text": 3}])
    with pytest.raises(UserError, match=r"rows\.jsonl: line 3, field 'text' holds a number"):
        read(lines)
    many = [{"turns": [ASK]}] * 1_500 + [{"turns": [{"role": "user", "content": None}]}]  # in the second batch
    with pytest.raises(UserError, match=r"rows\.parquet: row 1501, field 'turns'"):
        read(write(tmp_path, "parquet", many) + ":turns")


def test_a_field_that_a_row_lacks_is_named(tmp_path: Path) -> None:
    source = write(tmp_path, "jsonl", [{"text": "a"}, {"words": "b"}])
    with pytest.raises(UserError, match="line 2 has no field 'text'; there are words"):
        read(source)
    for kind, place in (("set", "row 1 .*has"), ("parquet", "")):
        source = write(tmp_path, kind, [{"text": "a"}])
        with pytest.raises(UserError, match=f"{place} no field 'words'; there are text"):
            read(f"{source}:words")


def test_what_the_template_refuses_is_one_line(tmp_path: Path, chat_tokenizer: Any) -> None:
    source = write(tmp_path, "jsonl", [{"messages": [ASK]}, {"messages": [{"role": "pirate", "content": "Ahoy"}]}])
    with pytest.raises(UserError, match=r"line 2, field 'messages' .* template refuses: unknown role pirate"):
        read(source, chat_tokenizer)


@pytest.mark.parametrize("field", ["text", "messages"])
def test_half_a_surrogate_pair_is_refused(tmp_path: Path, field: str) -> None:
    """JSON can say it; no tokenizer takes it."""
    text = "ship \ud83d"
    source = write(tmp_path, "jsonl", [{field: text if field == "text" else [{"role": "user", "content": text}]}])
    with pytest.raises(UserError, match=rf"line 1, field '{field}' is no valid Unicode: .*\\ud83d"):
        read(source)


def test_whole_surrogate_pairs_are_a_character(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(r'{"text": "\ud83d\udea2"}')
    assert read(str(tmp_path / "rows.jsonl")) == ["\N{SHIP}"]


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        ([{"text": None, "other": "x"}, {"text": "a", "other": "y"}], ["a"]),
        ([{"words": None}, {"words": "a"}, {"words": None}], ["a"]),
        ([{"title": "x", "text": "a"}], ["a"]),
        ([{"number": 3, "words": "a"}], ["a"]),
        ([{"words": None}], []),
    ],
)
def test_the_field_is_the_usual_one_or_the_only_one(
    tmp_path: Path, rows: list[dict[str, Any]], texts: list[str]
) -> None:
    assert read(write(tmp_path, "jsonl", rows)) == texts


@pytest.mark.parametrize("row", [{"a": "x", "b": "y"}, {"a": 3}, {}])
def test_where_no_field_is_told_one_must_be_named(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"which field is the text\? .* name it: .*rows\.jsonl:FIELD"):
        read(write(tmp_path, "jsonl", [row]))


def test_who_stops_early_is_told_of_what_was_left_out_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ((f"line {number}", {"text": None if number < 4 else "ships"}) for number in range(1, 10**9))
    assert list(islice(row_texts("ships", rows), 2)) == ["ships", "ships"]
    assert capsys.readouterr().err == "ships: 3 rows have no text in field 'text'; left out\n"


def test_a_refused_text_is_one_line_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="line 2, field 'text' holds a number"):
        list(row_texts("ships", [("line 1", {"text": None}), ("line 2", {"text": 3})]))
    assert capsys.readouterr().err == ""


words = st.text(st.characters(codec=None, exclude_categories=())) | st.sampled_from(
    ["None", "nan", "[{'role'", "\ud800"]
)
turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": words}), max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
nested = st.recursive(
    scalars | turns,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
values = st.one_of(st.none(), words, turns, nested)
rows_of_values = st.lists(
    st.dictionaries(st.sampled_from(["text", "messages", "a", "b"]), values, max_size=3), min_size=1, max_size=5
)


def right_text(value: Any) -> list[str] | None:
    """What the rule makes of a value: [] where it says nothing, None where it is to be refused."""
    if value is None or value == []:
        return []
    if isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    ):
        value = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        return None
    return [value]


@settings.get_profile("fuzzed")
@given(rows=rows_of_values, field=st.sampled_from([None, "text", "messages", "a"]))
def test_any_rows_are_right_text_or_one_clear_line(rows: list[dict[str, Any]], field: str | None) -> None:
    rows = json.loads(json.dumps(rows))  # as a file has them: pairs of surrogates are one character
    with TemporaryDirectory() as folder:
        source = write(Path(folder), "jsonl", rows) + (f":{field}" if field else "")
        try:
            texts: list[str] | None = list(text_source(source).open())
        except UserError as error:
            said = str(error)
            texts = None
    if texts is None:
        assert any(told in said for told in ("line ", "which field is the text?"))
        if field is not None and all(field in row for row in rows):
            assert any(right_text(row[field]) is None for row in rows)
    else:
        named = [right_text(value) or [] for row in rows for value in row.values()]
        every = [text for texts_of in named for text in texts_of]
        assert all(text in every for text in texts)
        if field is not None:
            assert texts == [text for row in rows for text in right_text(row[field]) or []]


@given(
    rows=st.lists(st.none() | st.text(), min_size=1, max_size=6) | st.lists(st.none() | turns, min_size=1, max_size=6)
)
def test_parquet_says_the_same_as_json_lines(rows: list[Any]) -> None:
    def texts(source: str) -> list[str] | str:
        try:
            return list(text_source(f"{source}:x").open())
        except UserError as error:
            return str(error).partition(", field")[2]

    records = json.loads(json.dumps([{"x": row} for row in rows]))
    with TemporaryDirectory() as folder:
        lines = texts(write(Path(folder), "jsonl", records))
        try:
            columns = texts(write(Path(folder), "parquet", records))
        except UnicodeEncodeError:  # no Parquet file can hold it
            return
    assert lines == columns
