"""Every method at every ratio, in the order they were given."""

from __future__ import annotations

import pytest

from bench.sweeps.choices import sweep_choices
from bench.sweeps.sweep_settings import SweepSettings
from mi_prun.errors import UserError


def test_methods_then_ratios() -> None:
    choices = sweep_choices(SweepSettings(ratios="0,.25,.5", methods="bi:0,mi-prun:24"), 12)
    assert [(choice.spec.label, choice.k) for choice in choices] == [
        ("bi:0", 3),
        ("bi:0", 6),
        ("mi-prun:24", 3),
        ("mi-prun:24", 6),
    ]
    assert [choice.file_name for choice in choices] == ["bi-0-3", "bi-0-6", "mi-prun-24-3", "mi-prun-24-6"]
    assert [choice.label for choice in choices] == ["bi 25.0%", "bi 50.0%", "mi-prun 25.0%", "mi-prun 50.0%"]


@pytest.mark.parametrize(("fields", "said"), [({"methods": "magic"}, "magic"), ({"ratios": "2"}, "--ratios")])
def test_what_cannot_be_chosen(fields: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sweep_choices(SweepSettings(**fields), 12)  # type: ignore[arg-type]
