"""Flags of the server, in either of vLLM's spellings."""

from __future__ import annotations

import pytest

from bench.engines.flags import RESERVED_FLAGS, check_flags, flag_name, flag_value, has_flag, measured_flags
from mi_prun.errors import UserError


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (("--max-model-len", "512"), "512"),
        (("--max_model_len=512",), "512"),
        (("--max-model-len", "512", "--max-model-len=256"), "256"),  # the last one counts
        (("--max-model-len",), None),
        (("--other", "512"), None),
        ((), None),
    ],
)
def test_the_value_of_a_flag(flags: tuple[str, ...], value: str | None) -> None:
    assert flag_value(flags, "--max-model-len") == value
    assert has_flag(flags, "--max-model-len") == any("max" in flag for flag in flags)


def test_names() -> None:
    assert flag_name("--max_model_len=a_b") == "--max-model-len"
    assert flag_name("-tp") == "-tp"
    assert flag_name("some_value") == "some_value"


def test_engines_that_are_measured_have_no_prefix_cache_unless_it_is_asked_for() -> None:
    assert measured_flags(("--seed=1",)) == ("--seed=1", "--no-enable-prefix-caching")
    for flags in (("--enable_prefix_caching",), ("--no-enable-prefix-caching", "--seed=1")):
        assert measured_flags(flags) == flags


@pytest.mark.parametrize("name", RESERVED_FLAGS)
def test_flags_that_the_bench_chooses(name: str) -> None:
    check_flags(("--enforce-eager", "--dtype", "float32"))
    for flag in (name, name.replace("-", "_").replace("__", "--", 1), f"{name}=x"):
        with pytest.raises(UserError, match=f"--serve-flags may not hold {name}: the bench chooses it"):
            check_flags(("--enforce-eager", flag))
