"""`make demo`: the whole way on the bundled model, with the commands that a user would type.

One analysis, plans at four ratios, checkpoints; dense and pruned served, asked one completion each through the `openai`
client, and benched; a report. Written to ./demo, which is made anew each time. No process is left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bench.engines.engine import EngineProcess
from bench.models.measured_model import MeasuredModel
from bench.reports.report import write_report
from bench.settings import MeasureSettings, WorkloadSettings
from bench.sweeps.aggregate import line
from bench.sweeps.run import run
from bench.sweeps.sweep import sweep_shape
from bench.sweeps.sweep_settings import SweepSettings
from mi_prun.console import run_command
from mi_prun.errors import UserError

REFERENCE = Path(os.path.relpath(Path(__file__).parent / "reference"))  # records name no folder of the machine
OUT = Path("demo")
BLOCKS = (1, 2, 3, 4)  # of 12: ratios of 8, 17, 25 and 33 %
PROMPT = "The old man opened the door and"
ANSWER_TOKENS = 40
FLAGS = ("--enforce-eager", "--max-model-len", "256", "--uvicorn-log-level", "warning")
KV_CACHE_GIB = "1"  # of each of five engines that are alive side by side
# Loads that fit in the demo's time; the report prints them.
SETTINGS = MeasureSettings(
    WorkloadSettings(input_tokens=128, output_tokens=64, prompts=16, concurrency=(4,), warmups=4, rounds=3), FLAGS
)
SHAPE, SHAPE_RATIO = "qwen2.5-0.5b-32k", ".25"
SHAPE_SETTINGS = SweepSettings(
    ratios=SHAPE_RATIO,
    measure=MeasureSettings(
        WorkloadSettings(input_tokens=128, output_tokens=24, prompts=2, concurrency=(1,), warmups=1, rounds=3), FLAGS
    ),
)


def main() -> None:
    sys.exit(run_command(demo))


def demo() -> None:
    start = time.monotonic()
    if OUT.is_symlink() or (OUT.exists() and not OUT.is_dir()):
        raise UserError(f"{OUT} is not a folder; move it away, the demo writes there")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    command("analyze", str(REFERENCE), "-o", "demo/analysis")
    pruned = []
    for k in BLOCKS:
        plan, folder = f"demo/plan-{k}.json", f"demo/pruned-{k}"
        command("plan", "demo/analysis", "--num-blocks", str(k), "-o", plan)
        command("apply", str(REFERENCE), plan, "-o", folder)
        pruned.append(folder)
    answers: list[tuple[str, str]] = []

    def ask(engine: EngineProcess, model: MeasuredModel) -> None:
        answers.append((model.arm.label, complete(engine, engine.model)))

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", KV_CACHE_GIB)
    print(f"\n$ mi-prun-bench run --dense bench/reference {' '.join(pruned)} -o demo/results", flush=True)
    points = run(str(REFERENCE), pruned, OUT / "results", SETTINGS, while_served=ask)
    print(f"\n$ mi-prun-bench sweep --shape {SHAPE} --ratios {SHAPE_RATIO} -o demo/results", flush=True)
    shaped = sweep_shape(SHAPE, OUT / "results", SHAPE_SETTINGS)
    print("\n$ mi-prun-bench report demo/results")
    paths = write_report(OUT / "results", OUT / "results")
    left = [process.pid for process in psutil.Process().children(recursive=True)]
    if left:
        raise RuntimeError(f"processes are left behind: {left}")
    print(f"\nThe same prompt to each ({PROMPT!r}, greedy):")
    for name, answer in answers:
        print(f"  {name:14} ...{answer}")
    print("\nThe bundled model, so small that the engine's work per step sets its speed:")
    for point in points:
        print(f"  {line(point)}")
    print(f"\nA shape of a model's size ({SHAPE}, weights that mean nothing), where the blocks set it:")
    for point in shaped:
        print(f"  {line(point)}")
    print(f"\nNo process is left. {time.monotonic() - start:.0f} s. Report: {paths[0].resolve()}")


def command(*words: str) -> None:
    """Run `mi-prun ...` as a user would, and show it."""
    shown = " ".join("bench/reference" if word == str(REFERENCE) else word for word in words)
    print(f"\n$ mi-prun {shown}", flush=True)
    status = subprocess.run([sys.executable, "-m", "mi_prun.cli", *words], check=False).returncode
    if status:
        raise SystemExit(status)


def complete(engine: EngineProcess, model: str) -> str:
    """One greedy completion through the `openai` client."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{engine.base_url}/v1", api_key="none")
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=ANSWER_TOKENS, temperature=0)
    return " ".join(answer.choices[0].text.split())


if __name__ == "__main__":
    main()
