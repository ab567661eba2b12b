"""Run the test suite's parts side by side and say at the end, in one line, how many passed and what failed.

    python tests/run.py          # tests without an engine, lint, tests with one: `make test`
    python tests/run.py --all    # also the long ones, and every fuzzed example: `make test-all`
    python tests/run.py --numeric    # the cheap numeric tests under other instruction sets and numbers of threads

A part's output is printed when the part ends.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "tests"
BIN = Path(sys.executable).parent
EVERY_S = 30  # a line that says what runs
# The last: an engine's one worker gets no process of its own, whose imports would be a third of the engine's start.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
RECOVERY = "tests/mi_prun/recovery"
FUZZ_SHARE = "0.1"  # of the fuzzed examples, unless all tests are asked for
WITH_ENGINES = "mark.engine"  # is in the files that have such tests; the others are not even imported


@dataclass(frozen=True)
class Command:
    """A command of the environment, and what it finds in its variables."""

    words: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([*(f"{name}={value}" for name, value in self.variables.items()), *self.words])


LINT = (
    Command(("ruff", "check", ".")),
    Command(("ruff", "format", "--check", ".")),
    Command(("lint-imports", "--no-logo")),
    Command(("mypy",)),
)


@dataclass
class Part:
    """A part of the suite: commands that run one after the other, in a thread of their own."""

    name: str
    commands: Sequence[Command]
    failures: list[str] = field(default_factory=list)
    passed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        return self.seconds > 0

    def run(self) -> None:
        begin = time.monotonic()
        for number, command in enumerate(self.commands):
            report = RESULTS / f"{self.name}-{number}.xml"
            words = [str(BIN / command.words[0]), *command.words[1:]]
            if command.words[0] == "pytest":
                words += ["-p", "no:cacheprovider", f"--junitxml={report}"]
            done = subprocess.run(
                words,
                cwd=ROOT,
                env=os.environ | ENVIRONMENT | command.variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            print(f"--- {command}\n{done.stdout.strip()}", flush=True)
            self._count(report, str(command), done.returncode)
        self.seconds = time.monotonic() - begin

    def _count(self, report: Path, command: str, status: int) -> None:
        failures: list[str] = []
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):
                if case.find("failure") is not None or case.find("error") is not None:
                    failures.append(f"{case.get('classname')}::{case.get('name')}")
                elif case.find("skipped") is not None:
                    self.skipped += 1
                else:
                    self.passed += 1
        if status != 0 and not failures:
            failures.append(f"`{command}` (exit status {status})")
        self.failures += failures


def suite(every: bool) -> list[Part]:
    """Return the parts of the suite: one computes, one mostly waits, one starts engines. So two cores are full."""
    share = {"MI_PRUN_FUZZ_SHARE": "1" if every else FUZZ_SHARE}
    some = "" if every else " and not long"
    plain = "pytest", "-m", f"not engine{some}"
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    engines = [str(file.relative_to(ROOT)) for file in files if WITH_ENGINES in file.read_text()]
    others = [word for folder in ("tests/serve", "tests/bench", RECOVERY) for word in ("--ignore", folder)]
    return [
        Part("mi_prun", [Command((*plain, *others), share)]),
        Part("serve-bench", [Command((*plain, "tests/serve", "tests/bench"), share), *LINT]),
        Part("engine", [Command(("pytest", "-m", f"engine{some}", *engines)), Command((*plain, RECOVERY), share)]),
    ]


def numeric() -> list[Part]:
    """Return the numeric tests, once for each instruction set that this processor has: the last with two threads, as
    `make test` runs it with one, the others with one.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    capabilities = ["default", *(name for name, flag in (("avx2", "avx2"), ("avx512", "avx512f")) if flag in flags)]
    commands = [
        Command(
            ("pytest", "-q", "-m", "numeric", "tests/mi_prun"),
            {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "2" if capability == capabilities[-1] else "1"},
        )
        for capability in capabilities
    ]
    return [Part(f"numeric {first + 1}", commands[first::2]) for first in range(min(2, len(commands)))]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true", help="also the long tests")
    parser.add_argument("--numeric", action="store_true", help="only the numeric tests, on every instruction set")
    asked = parser.parse_args()
    running = numeric() if asked.numeric else suite(asked.all)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for old in RESULTS.glob("*.xml"):
        old.unlink()
    begin = said = time.monotonic()
    threads = [threading.Thread(target=part.run, daemon=True) for part in running]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        if time.monotonic() - said >= EVERY_S:
            said = time.monotonic()
            left = ", ".join(part.name for part in running if not part.done)
            print(f"... {said - begin:.0f} s, running: {left}", file=sys.stderr, flush=True)
    failures = [failure for part in running for failure in part.failures]
    took = ", ".join(f"{part.name} {part.seconds:.0f} s" for part in running)
    print(f"\nTook {time.monotonic() - begin:.0f} s ({took}).")
    if failures:
        print(f"Failed: {'; '.join(failures)}")
    passed, skipped = (sum(getattr(part, name) for part in running) for name in ("passed", "skipped"))
    print(f"test: {passed} passed, {len(failures)} failed, {skipped} skipped")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
