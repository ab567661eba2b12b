"""Make the loads of a sweep: lengths by preset, by hand or out of a trace; closed loops, and open ones up to
saturation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from bench.engines.flags import flag_value, has_flag
from bench.load.prompts import OwnPrompts
from bench.load.trace import Request, read_trace
from bench.records.schema import Trace, Workload
from bench.settings import PRESETS, WorkloadSettings
from mi_prun.console import say
from mi_prun.errors import UserError
from mi_prun.settings import check_seed

TOOL = "vllm bench serve"
CUSTOM, TRACE = "custom", "trace"
# Of the dense model's own requests/s at the highest concurrency: the last one asks for more than it can give.
RATE_SHARES = (0.25, 0.5, 0.75, 1.0, 2.0)
SEEDS_A_LOAD = 1000  # rounds and the warm-up of a load draw from these; see driver.py
# Requests of an open loop arrive for so many times as long as the dense model takes for one at the highest concurrency:
# long enough for what is in flight to settle, where it does (saturation.py).
OPEN_TURNS = 4
OPEN_LEAST = 64
LENGTH_FLAG = "--max-model-len"
CONTEXT_TOKENS = 4096  # served where neither the flags nor the loads ask for more


def check_workloads(settings: WorkloadSettings) -> None:
    """Refuse settings that make no load. Raises UserError with the option's name."""
    if settings.prompts_from is not None and (settings.text is not None or settings.trace is not None):
        raise UserError("--prompts-from stands alone: leave --text and --trace out")
    if settings.text is not None and settings.trace is not None:
        raise UserError("--text and --trace exclude each other: the prompts are of one or the other's length")
    if (settings.input_tokens is None) != (settings.output_tokens is None):
        raise UserError("--input-tokens and --output-tokens go together: give both, or --presets")
    for name in settings.presets:
        if name not in PRESETS:
            raise UserError(f"--presets must be of {', '.join(PRESETS)}, got {name!r}")
    if not settings.presets and settings.input_tokens is None and settings.trace is None:
        raise UserError(f"--presets is empty; name some of {', '.join(PRESETS)}, or --input-tokens, or --trace")
    if not settings.concurrency:
        raise UserError("--concurrency is empty; the first load must be a closed loop, like 1,8,64")
    named = [("--concurrency", value) for value in settings.concurrency]
    named += [("--rounds", settings.rounds)]
    for option in ("input_tokens", "output_tokens", "prompts"):
        if (value := getattr(settings, option)) is not None:
            named.append((f"--{option.replace('_', '-')}", value))
    for option, value in named:
        if value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    if settings.prompts is not None and settings.prompts < max(settings.concurrency):
        raise UserError(
            f"--prompts {settings.prompts} cannot keep {max(settings.concurrency)} requests in flight; give as "
            "many, or leave it out: twice as many"
        )
    if settings.rounds >= SEEDS_A_LOAD - 1:
        raise UserError(f"--rounds must be below {SEEDS_A_LOAD - 1}, got {settings.rounds}")
    check_seed(settings.seed)
    if not isinstance(settings.rates, str):
        for rate in settings.rates:
            if not (math.isfinite(rate) and rate > 0):
                raise UserError(f"--rates must be over 0 requests a second, got {rate:g}")


@dataclass(frozen=True)
class Lengths:
    """The lengths that a preset's requests have, in tokens; means over the file for a trace.

    longest: input and output of the longest request.
    """

    preset: str
    input_tokens: float
    output_tokens: float
    longest: int
    trace: Trace | None = None


def lengths_of(
    settings: WorkloadSettings, context: int | None, own: OwnPrompts | None = None
) -> tuple[list[Lengths], list[Request]]:
    """Return the lengths that presets, options and trace ask for, and the trace's requests.

    own: prompts that have their own lengths, in place of the presets. Raises UserError where a request is longer than
    `context`.
    """
    if own is not None:
        return [_own_lengths(settings, context, own)], []
    asked = [(name, *PRESETS[name]) for name in settings.presets]
    if settings.input_tokens is not None and settings.output_tokens is not None:
        asked = [(CUSTOM, settings.input_tokens, settings.output_tokens)]
    lengths = [Lengths(name, into, out, into + out) for name, into, out in asked]
    for each in lengths:
        if context is not None and each.longest > context:
            option = (
                f"--input-tokens {each.input_tokens} and --output-tokens {each.output_tokens}"
                if each.preset == CUSTOM
                else f"--presets {each.preset} ({each.input_tokens} in, {each.output_tokens} out)"
            )
            raise UserError(
                f"{option} make {each.longest}, but the model is served with a context of {context}; ask for less"
            )
    requests: list[Request] = []
    if settings.trace is not None:
        trace, requests, left_out = read_trace(settings.trace, context)
        if left_out and context is not None:
            say(
                f"--trace {trace.name}: {left_out:,} of {left_out + len(requests):,} requests are longer than the "
                f"context of {context:,} and left out"
            )
        lengths.append(
            Lengths(
                TRACE,
                mean(request.input_tokens for request in requests),
                mean(request.output_tokens for request in requests),
                max(request.input_tokens + request.output_tokens for request in requests),
                trace,
            )
        )
    return lengths, requests


def _own_lengths(settings: WorkloadSettings, context: int | None, own: OwnPrompts) -> Lengths:
    out = settings.output_tokens or PRESETS["balanced"][1]
    longest = max(own.tokens)
    if context is not None and longest + out > context:
        raise UserError(
            f"{own.name} has a prompt of {longest} tokens; with --output-tokens {out} it is longer than the context of "
            f"{context} that the model is served with: ask for less, or leave the prompt out"
        )
    return Lengths(CUSTOM, mean(own.tokens), out, longest + out)


def closed_workloads(settings: WorkloadSettings, lengths: Sequence[Lengths]) -> list[Workload]:
    """Return each preset at each concurrency. The first one is the run's main load."""
    pairs = [(each, value) for each in lengths for value in settings.concurrency]
    return [
        _load(settings, each, index, concurrency=value, prompts=settings.prompts or max(8, 2 * value))
        for index, (each, value) in enumerate(pairs)
    ]


def open_workloads(
    settings: WorkloadSettings, lengths: Sequence[Lengths], rates: Sequence[Sequence[float]]
) -> list[Workload]:
    """Return each preset at its own rates. Where the rates are `auto`, they come from `rates_for`."""
    first = len(lengths) * len(settings.concurrency)
    asked = [
        (each, rate, prompts)
        for each, own in zip(lengths, rates, strict=True)
        for rate, prompts in zip(own, open_prompts(settings), strict=True)
    ]
    return [
        _load(settings, each, first + index, rate_per_s=rate, prompts=prompts)
        for index, (each, rate, prompts) in enumerate(asked)
    ]


def open_prompts(settings: WorkloadSettings) -> list[int]:
    """Return how many requests a round has at each rate.

    By Little's law, c in flight at r requests/s take c / r seconds each. So OPEN_TURNS x share x c requests arrive in
    OPEN_TURNS times that. A rate that the user asks for is taken for the whole of what the engine can give.
    """
    shares = RATE_SHARES if isinstance(settings.rates, str) else (1.0,) * len(settings.rates)
    most = max(settings.concurrency)
    return [settings.prompts or max(OPEN_LEAST, math.ceil(OPEN_TURNS * share * most)) for share in shares]


def rates_for(dense_requests_per_s: float) -> tuple[float, ...]:
    """Return rates up to saturation: shares of what the dense model can give, to three digits."""
    return tuple(float(f"{share * dense_requests_per_s:.3g}") for share in RATE_SHARES)


def _load(
    settings: WorkloadSettings,
    lengths: Lengths,
    index: int,
    *,
    prompts: int,
    concurrency: int | None = None,
    rate_per_s: float | None = None,
) -> Workload:
    return Workload(
        tool=TOOL,
        preset=lengths.preset,
        concurrency=concurrency,
        rate_per_s=rate_per_s,
        input_tokens=lengths.input_tokens,
        output_tokens=lengths.output_tokens,
        prompts=prompts,
        warmups=settings.warmups,
        seed=settings.seed + SEEDS_A_LOAD * index,
        trace=lengths.trace,
        text=settings.text,
    )


def served_context(flags: Sequence[str], context: int | None) -> int | None:
    """Return the context that the flags say, else the config's; None where neither says it in plain digits."""
    text = flag_value(flags, LENGTH_FLAG)
    if text is None:
        return context
    return int(text) if text.isdecimal() else None


def with_context(flags: Sequence[str], context: int | None, lengths: Sequence[Lengths]) -> tuple[str, ...]:
    """Return the flags, with a context added that is no longer than the loads need. Flags that name one are kept.

    An engine refuses to start where its KV cache cannot hold a request of the whole context.
    """
    if has_flag(flags, LENGTH_FLAG) or (context is not None and context <= CONTEXT_TOKENS):
        return tuple(flags)
    longest = max(CONTEXT_TOKENS, *(each.longest for each in lengths))
    return (*flags, LENGTH_FLAG, str(longest))
