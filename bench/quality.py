"""Quality of a written checkpoint, measured in a process of its own: what it took on the device is free afterwards.

python -m bench.quality DENSE PRUNED TEXT --seed 0        prints a Quality as JSON
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from mi_prun.console import run_command
from mi_prun.errors import UserError
from mi_prun.plan import Quality


def measured_quality(dense: str, pruned: str, text: str, seed: int) -> Quality:
    """Perplexity and KL(dense || pruned) per token on the held-out part of `text`."""
    command = [sys.executable, "-m", "bench.quality", dense, pruned, text, "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("error: ") if said else f"status {done.returncode}"
        raise UserError(f"quality of {pruned} on {text}: {reason}")
    return Quality.model_validate_json(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("dense", "pruned", "text"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()

    def measure() -> None:
        from mi_prun.quality import measure_quality

        print(measure_quality(own.dense, own.pruned, own.text, seed=own.seed).model_dump_json())

    sys.exit(run_command(measure))


if __name__ == "__main__":
    main()
