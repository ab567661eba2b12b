from __future__ import annotations

from typing import ClassVar

import pytest

from mi_prun.artefact import Artefact
from mi_prun.errors import UserError


class Thing(Artefact):
    schema_name: ClassVar[str] = "thing"

    count: int
    share: float = 0.5


def test_what_is_written_is_read_back(tmp_path):
    Thing(count=3).write(tmp_path / "thing.json")
    assert Thing.read(tmp_path / "thing.json") == Thing(count=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[1]", "is not a thing file .found 'list'"),
        ('{"count": 3}', "is not a thing file .found None"),
        ('{"mi_prun_schema": "plan", "schema_version": 1, "count": 3}', "found 'plan'"),
        ('{"mi_prun_schema": "thing", "schema_version": 2, "count": 3}', "schema version 2, this release reads 1"),
        ('{"mi_prun_schema": "thing", "schema_version": 1}', "field count: Field required"),
        ('{"mi_prun_schema": "thing", "schema_version": 1, "count": 3, "more": 1}', "field more: Extra inputs"),
        ('{"mi_prun_schema": "thing", "schema_version": 1, "count": 3, "share": NaN}', "field "),
    ],
)
def test_what_is_not_right_is_one_line(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Thing.read(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_what_is_no_analysis_is_told_so_with_the_right_article():
    class Answer(Artefact):
        schema_name: ClassVar[str] = "answer"

    with pytest.raises(UserError, match=r"^x is not an answer file .found None"):
        Answer.parse("{}", origin="x")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        Thing.read(tmp_path / "none.json")


def test_text_that_nests_too_deep(tmp_path):
    (tmp_path / "x.json").write_text("[" * 99_999)
    with pytest.raises(UserError, match="is not JSON"):
        Thing.read(tmp_path / "x.json")
