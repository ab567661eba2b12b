"""Which loads a sweep has, and which settings are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.load.prompts import OwnPrompts
from bench.load.workloads import (
    Lengths,
    check_workloads,
    closed_workloads,
    lengths_of,
    open_prompts,
    open_workloads,
    rates_for,
    served_context,
    with_context,
)
from bench.options import run_workloads
from bench.settings import PRESETS, WorkloadSettings
from mi_prun.errors import UserError

SETTINGS = WorkloadSettings()


def test_each_preset_at_each_concurrency_and_rate_with_prompts_of_its_own() -> None:
    settings = replace(
        SETTINGS, presets=("decode-heavy", "prefill-heavy"), concurrency=(1, 8), seed=3, rates=(1.0, 2.0)
    )
    lengths, requests = lengths_of(settings, 2048)
    closed = closed_workloads(settings, lengths)
    opened = open_workloads(settings, lengths, [(0.5, 1.0), (2.0, 4.0)])
    assert requests == []
    assert [load.label for load in (*closed, *opened)] == [
        "decode-heavy, 1 in flight",
        "decode-heavy, 8 in flight",
        "prefill-heavy, 1 in flight",
        "prefill-heavy, 8 in flight",
        "decode-heavy, 0.5 requests/s",
        "decode-heavy, 1 requests/s",
        "prefill-heavy, 2 requests/s",
        "prefill-heavy, 4 requests/s",
    ]
    assert [load.prompts for load in closed] == [8, 16, 8, 16]
    assert (closed[0].input_tokens, closed[0].output_tokens) == PRESETS["decode-heavy"]
    seeds = [load.seed for load in (*closed, *opened)]
    assert seeds[0] == 3
    assert min(b - a for a, b in pairwise(seeds)) == 1000  # rounds and warm-up lie between


def test_lengths_by_hand_take_the_place_of_presets() -> None:
    settings = replace(SETTINGS, input_tokens=60, output_tokens=4, prompts=5)
    lengths, _ = lengths_of(settings, 64)
    assert [(each.preset, each.longest) for each in lengths] == [("custom", 64)]
    assert {load.prompts for load in closed_workloads(settings, lengths)} == {5}


def test_rates_go_past_what_the_dense_model_can_give() -> None:
    rates = rates_for(3.3333)
    assert rates == (0.833, 1.67, 2.5, 3.33, 6.67)


@pytest.mark.parametrize(
    ("fields", "prompts"),
    [
        ({"rates": "auto"}, [64, 128, 192, 256, 512]),  # four times as long as one takes among 64
        ({"rates": "auto", "concurrency": (1,)}, [64] * 5),
        ({"rates": "auto", "prompts": 5}, [5] * 5),
        ({"rates": (0.5, 9.0)}, [256, 256]),
        ({"rates": ()}, []),
    ],
)
def test_an_open_loop_lasts_long_enough_to_saturate(fields: dict[str, Any], prompts: list[int]) -> None:
    assert open_prompts(replace(SETTINGS, **fields)) == prompts


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rounds": 0}, "--rounds must be at least 1, got 0"),
        ({"rounds": 5000}, "--rounds must be below 999"),
        ({"input_tokens": -3, "output_tokens": 4}, "--input-tokens must be at least 1, got -3"),
        ({"input_tokens": 3}, "--input-tokens and --output-tokens go together"),
        ({"concurrency": ()}, "--concurrency is empty"),
        ({"concurrency": (1, 0)}, "--concurrency must be at least 1, got 0"),
        ({"prompts": 0}, "--prompts must be at least 1, got 0"),
        ({"presets": ("chatty",)}, "--presets must be of balanced, prefill-heavy, decode-heavy, got 'chatty'"),
        ({"rates": (1.0, float("nan"))}, "--rates must be over 0 requests a second, got nan"),
        ({"rates": (-1.0,)}, "--rates must be over 0 requests a second, got -1"),
        ({"presets": ()}, "--presets is empty; name some of balanced"),
        ({"concurrency": (1, 64), "prompts": 32}, "--prompts 32 cannot keep 64 requests in flight"),
        ({"seed": -1}, "--seed must be in 0..2147483647, got -1"),
    ],
)
def test_settings_that_will_not_do(fields: dict[str, Any], said: str) -> None:
    check_workloads(SETTINGS)
    with pytest.raises(UserError, match=said):
        check_workloads(replace(SETTINGS, **fields))


def test_requests_longer_than_the_context() -> None:
    with pytest.raises(UserError, match=r"--presets balanced \(128 in, 64 out\) make 192, .* context of 191; ask for"):
        lengths_of(SETTINGS, 191)
    with pytest.raises(UserError, match=r"--input-tokens 60 and --output-tokens 8 make 68, .* a context of 64"):
        lengths_of(replace(SETTINGS, input_tokens=60, output_tokens=8), 64)
    assert lengths_of(SETTINGS, None)[0][0].longest == 192


def test_prompts_have_their_own_lengths() -> None:
    own = OwnPrompts("chats.jsonl", ("a", "b", "c"), (10, 20, 60))
    settings = replace(SETTINGS, input_tokens=128, output_tokens=40)
    assert lengths_of(settings, 100, own) == ([Lengths("custom", 30, 40, 100)], [])
    with pytest.raises(UserError, match=r"chats\.jsonl has a prompt of 60 tokens; with --output-tokens 40 .* of 99"):
        lengths_of(settings, 99, own)
    with pytest.raises(UserError, match="--prompts-from stands alone: leave --text and --trace out"):
        check_workloads(replace(settings, prompts_from=Path("chats.jsonl"), text="story.txt"))


@pytest.mark.parametrize(
    ("flags", "context"),
    [
        ((), 512),
        (("--max-model-len", "16"), 16),
        (("--enforce-eager", "--max-model-len=16"), 16),
        (("--max-model-len", "4k"), None),
        (("--max_model_len=16",), 16),
        (("--max_model_len", "16", "--max-model-len=32"), 32),  # vLLM takes the last one
        (("--served-model-name", "max_model_len"), 512),
    ],
)
def test_the_context_a_model_is_served_with(flags: tuple[str, ...], context: int | None) -> None:
    assert served_context(flags, 512) == context


@pytest.mark.parametrize(
    ("flags", "context", "more"),
    [
        ((), 512, ()),
        ((), 131_072, ("--max-model-len", "4096")),
        ((), None, ("--max-model-len", "4096")),
        (("--max_model_len=16",), 131_072, ()),
    ],
)
def test_a_long_context_is_cut_where_no_flag_names_one(
    flags: tuple[str, ...], context: int | None, more: tuple[str, ...]
) -> None:
    lengths, _ = lengths_of(SETTINGS, context)
    assert with_context(flags, context, lengths) == (*flags, *more)


def test_a_context_holds_the_longest_request() -> None:
    lengths, _ = lengths_of(replace(SETTINGS, input_tokens=8000, output_tokens=100), 131_072)
    assert with_context((), 131_072, lengths) == ("--max-model-len", "8100")


def test_a_trace_is_a_preset_more(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,30,10\n1,10,30\n2,500,5\n3,7,0\n")
    settings = replace(SETTINGS, trace=path, concurrency=(2,))
    lengths, requests = lengths_of(settings, 192)
    assert len(requests) == 2  # one is too long, one failed
    loads = closed_workloads(settings, lengths)
    assert [load.label for load in loads] == ["balanced, 2 in flight", "trace, 2 in flight"]
    assert (loads[1].input_tokens, loads[1].output_tokens) == (20, 20)
    assert loads[1].trace is not None
    assert (loads[1].trace.name, loads[1].trace.requests) == ("azure.csv", 2)


@pytest.mark.parametrize(
    ("prompts", "concurrency", "expected"), [(None, "4", 32), (None, "1,64", 128), (5, "4", 5), (0, "4", 0)]
)
def test_run_and_draft_keep_all_in_flight(prompts: int | None, concurrency: str, expected: int) -> None:
    """What cannot be is refused where the loads are checked."""
    assert run_workloads(16, 8, prompts, concurrency, rounds=3, seed=0).prompts == expected
