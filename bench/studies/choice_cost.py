"""Measure how long a choice takes on a CPU: today's way and the way of before, one after the other in one run.

    python -m bench.studies.choice_cost SMOLLM2_FOLDER -o bench/published/offline/choice.jsonl

| step | today | before |
| --- | --- | --- |
| `plan` | a fifth of the blocks, on as much ranking text as a CPU measures in minutes | on all ranking text |
| `drop` | `prune --drop` of the bundled model: held-out text only | an analysis first |
| `sample` | the default's text of the bundled model, sampled in large batches | BEFORE_ROWS windows at once |

With `--vllm` text is sampled by vLLM too, its start included, from both models: SAMPLED_TOKENS of the larger one. Each
way's text is then read by the model: what a token surprises it by, on average, is the same where the distribution is.

The ranking text of `plan` is Python's own docstrings. The way of before would take an hour there: the seconds of a pass
over all text are measured on a part of it, and taken times the passes of today's choice. The record says so.

Each line is a step with the seconds of both ways, of the clock and of the processor, and where the time went
(cProfile: the share of the time in each function itself). Other work on the machine moves the clock's seconds only.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.demo import library_docstrings
from bench.records.machine import commit, environment, this_machine, versions
from mi_prun.analysis.analysis import Analysis
from mi_prun.analysis.analyze import make_analysis
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.console import run_command, say
from mi_prun.files import append_line
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.pipeline import prune
from mi_prun.plan.ratio import Amount
from mi_prun.planning.planning import make_context, plan_for
from mi_prun.quality.evaluator import Evaluator
from mi_prun.selection.context import Context
from mi_prun.settings import AnalyzeSettings, PlanSettings, WriteSettings
from mi_prun.text import self_text
from mi_prun.text.calibration import windows_for
from mi_prun.text.self_text import kv_elements, sample_windows

REFERENCE = Path(__file__).parents[1] / "reference"
DROPPED = "2,3,7"  # of the bundled model's 12 blocks
RATIO = 0.2
BEFORE_ROWS = 16
PART_TOKENS = 4_096  # of the ranking text that a pass is timed on
FUNCTIONS = 8  # of a profile
SAMPLED_TOKENS, SAMPLED_WINDOW = 16_384, 256  # of the larger model, where vLLM samples too
MOST_SEQUENCES = 256  # at once in vLLM, its own default
PLAN = PlanSettings(quality=False, device="cpu")

Figures = dict[str, Any]


def timed(work: Callable[[], Figures]) -> Figures:
    """Run `work` under a profile, and return its figures with its seconds and where they went."""
    profile = cProfile.Profile()
    clock, processor = time.perf_counter(), time.process_time()
    figures = profile.runcall(work)
    seconds = time.perf_counter() - clock
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
        **figures,
        "profile": shares_of(profile),
    }


def shares_of(profile: cProfile.Profile) -> dict[str, float]:
    """Return the functions that take the most of the time themselves, with their shares of it."""
    own: dict[str, float] = {}
    for (file, _, name), (_, _, seconds, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        place = name.strip("<>") if file == "~" else f"{Path(file).stem}.{name}"
        own[place] = own.get(place, 0.0) + seconds
    whole = sum(own.values())
    most = sorted(own, key=lambda place: -own[place])[:FUNCTIONS]
    return {place: round(own[place] / whole, 3) for place in most}


def plan_cost(dense: ModelFolder, analysis: Analysis) -> Figures:
    """Time the choice of RATIO of the blocks, and what it would take on all ranking text."""
    said: Figures = {}

    def today() -> Figures:
        context = make_context(analysis, PLAN, dense=dense)
        plan = plan_for(context, Amount(ratio=RATIO), PLAN)
        said["passes"] = plan.forward_passes
        return {**text_of(context), "passes": plan.forward_passes, "dropped": list(plan.dropped)}

    def before() -> Figures:
        """A part of what the choice took: the dense model and one set of blocks, on a part of the text."""
        context = Context(analysis, lambda: load_on(dense, "cpu"), PLAN.seed, None)
        evaluator = context.ranking
        windows = min(len(evaluator.windows), windows_for(PART_TOKENS, evaluator.windows.shape[1]))
        begun = time.perf_counter()
        evaluator.measure([(dense.num_blocks // 2,)], windows=windows)
        seconds = time.perf_counter() - begun
        a_pass = seconds / evaluator.passes
        return {**text_of(context), "passes": said["passes"], "estimated_seconds": round(a_pass * said["passes"], 1)}

    return {"today": timed(today), "before": timed(before)}


def text_of(context: Context) -> Figures:
    """Say how much text a context ranks on."""
    windows, length = context.ranking.windows.shape
    return {"ranking_tokens": windows * length, "window_tokens": length}


def drop_cost(settings: AnalyzeSettings) -> Figures:
    """Time `prune --drop` of the bundled model, and the same with an analysis first."""
    amount, plan_settings, write = Amount(drop=DROPPED), PlanSettings(device="cpu"), WriteSettings()

    def today(out: Path) -> Figures:
        prune(REFERENCE, out, amount, settings, plan_settings, write)
        return {}

    def before(out: Path) -> Figures:
        dense = open_model(REFERENCE)
        model = load_on(dense, "cpu")
        analysis = make_analysis(dense, settings, load=lambda: model)
        assert analysis is not None
        plan = plan_for(make_context(analysis, plan_settings, lambda: model, dense), amount, plan_settings)
        write_checkpoint(dense, plan, out)
        return {}

    with tempfile.TemporaryDirectory(prefix="mi-prun-choice-cost-") as folder:
        first, second = Path(folder) / "today", Path(folder) / "before"
        return {"today": timed(lambda: today(first)), "before": timed(lambda: before(second))}


VLLM = """
import json, sys, time
begun = time.perf_counter()
from vllm import LLM, SamplingParams
folder, start, windows, window, dtype, seed, sequences = sys.argv[1:]
windows, window, seed = int(windows), int(window), int(seed)
engine = LLM(
    folder, dtype=dtype, enforce_eager=True, max_model_len=window, max_num_seqs=int(sequences), seed=seed,
    enable_prefix_caching=False, generation_config="vllm",
)
ready = time.perf_counter()
sampling = SamplingParams(temperature=1.0, max_tokens=window - 1, ignore_eos=True, detokenize=False)
answers = engine.generate([{"prompt_token_ids": [int(start)]}] * windows, sampling, use_tqdm=False)
done = time.perf_counter()
rows = [[int(start), *answer.outputs[0].token_ids] for answer in answers]
print(json.dumps({"start_seconds": ready - begun, "sample_seconds": done - ready, "rows": rows}))
"""


def sample_cost(folder: Path, windows: int, window: int, seed: int, by_vllm: bool) -> Figures:
    """Time the sampling of a model's text: in large batches, with few rows at once, and by vLLM where asked for."""
    dense = open_model(folder)
    block_model = load_on(dense, "cpu")
    model = block_model.model

    def surprise(tokens: Tensor) -> Figures:
        """What a token of the text surprises the model by, and its standard error over windows, in nats."""
        rows = Evaluator(block_model, tokens).by_window([()])[0, :, 1] / (window - 1)
        error = float(rows.std(ddof=1)) / math.sqrt(len(rows)) if len(rows) > 1 else None
        return {"surprise_nats": round(float(rows.mean()), 4), "standard_error": error and round(error, 4)}

    def sample(ways: Figures, name: str) -> None:
        made: list[Tensor] = []

        def work() -> Figures:
            made.append(sample_windows(model, dense.tokenizer, windows=windows, window_tokens=window, seed=seed))
            rows = min(windows, self_text.rows_at_once(model, window))
            return {"tokens": windows * window, "window_tokens": window, "rows_at_once": rows}

        ways[name] = timed(work) | surprise(made[0])

    ways: Figures = {}
    sample(ways, "today")
    with cache_for(model, BEFORE_ROWS, window):
        sample(ways, "before")
    if by_vllm:
        figures, tokens = sampled_by_vllm(dense, windows, window, seed)
        ways["vllm"] = figures | surprise(tokens)
    return ways


def sampled_by_vllm(dense: ModelFolder, windows: int, window: int, seed: int) -> tuple[Figures, Tensor]:
    """Sample the same number of windows in a process of its own, and return its figures and the text."""
    tokenizer = dense.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    words = [str(dense.path), str(start), str(windows), str(window), "float32", str(seed), str(MOST_SEQUENCES)]
    engine = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", VLLM, *words], env=os.environ | engine, check=True, stdout=subprocess.PIPE, text=True
    )
    seconds, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    said: Figures = json.loads(done.stdout.splitlines()[-1])
    tokens = torch.tensor(said.pop("rows"))
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "tokens": tokens.numel(),
        "window_tokens": window,
        **{name: round(value, 2) for name, value in said.items()},
    }, tokens


@contextmanager
def cache_for(model: Any, rows: int, window: int) -> Iterator[None]:
    """Let text be sampled so many rows at once."""
    real = self_text.CPU_CACHE_BYTES
    elements = kv_elements(model.config.get_text_config())
    self_text.CPU_CACHE_BYTES = rows * window * elements * next(model.parameters()).element_size()
    try:
        yield
    finally:
        self_text.CPU_CACHE_BYTES = real


def measure(model: str, tokens: int, window: int | None, by_vllm: bool) -> Iterator[Figures]:
    """Yield the record of each step."""
    settings = AnalyzeSettings(scoring_tokens=tokens, window_tokens=window, device="cpu")
    known = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "threads": torch.get_num_threads(),
        "environment": environment(),
        "machine": this_machine().model_dump(),
        "versions": versions(),
        "commit": commit(),
    }
    length = window or open_model(REFERENCE).context_tokens()
    windows = sum(windows_for(part, length) for part in settings.part_tokens)
    steps: list[tuple[str, str, Callable[[], Figures]]] = [
        ("sample", REFERENCE.name, lambda: sample_cost(REFERENCE, windows, length, settings.seed, by_vllm)),
        ("drop", REFERENCE.name, lambda: drop_cost(settings)),
        ("plan", Path(model).name, lambda: _plan_of(model, settings)),
    ]
    if by_vllm:
        short = min(SAMPLED_WINDOW, length)
        fewer = min(windows_for(SAMPLED_TOKENS, short), windows)
        steps.append(("sample", Path(model).name, lambda: sample_cost(Path(model), fewer, short, settings.seed, True)))
    for step, name, work in steps:
        figures = work()
        for way, measured in figures.items():
            say(f"{step} of {name}, {way}: {measured['seconds']} s")
        yield {"bench": "choice_cost", "step": step, "model": name, **figures, **known}


def _plan_of(model: str, settings: AnalyzeSettings) -> Figures:
    dense = open_model(model)
    with tempfile.TemporaryDirectory(prefix="mi-prun-choice-cost-") as folder:
        text = library_docstrings(Path(folder) / "docstrings.txt")
        asked = AnalyzeSettings(
            sources=(str(text),), scoring_tokens=settings.scoring_tokens, window_tokens=settings.window_tokens,
            device="cpu",
        )  # fmt: skip
        analysis = make_analysis(dense, asked)
    assert analysis is not None
    return plan_cost(dense, analysis)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the folder of SmolLM2-135M-Instruct, by `mi-prun import`")
    parser.add_argument("--tokens", type=int, default=AnalyzeSettings.scoring_tokens, help="to score on")
    parser.add_argument("--window", type=int, help="tokens of a window; default: the model's context, capped")
    parser.add_argument("--vllm", action="store_true", help="sample by vLLM too")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()

    def work() -> None:
        for record in measure(options.model, options.tokens, options.window, options.vllm):
            line = json.dumps(record)
            print(line, flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            append_line(options.output, line)

    sys.exit(run_command(work))


if __name__ == "__main__":
    main()
