"""Turn the short list of direct dependencies into the complete pinned list.

    make lock        # writes requirements/cpu.txt from requirements/cpu.in, and ray.txt from ray.in

pip resolves a list without installing anything; what it would install is written down, one exact version a line, except
for the three packages below. The result is installed with `pip install --no-deps`. ray.txt has what cpu.txt has not.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# The registry's builds of these are CUDA builds. Beside a CPU torch `import transformers` then fails with
# "operator torchvision::nms does not exist". Neither vLLM nor transformers needs them for text models.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}

HERE = Path(__file__).parent


def resolve(*arguments: str) -> dict[str, str]:
    """Return what pip would install, by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*words, "--report", str(report), *arguments], check=True)
        installs = json.loads(report.read_text())["install"]
    named = {re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): item["metadata"]["version"] for item in installs}
    return {name: version for name, version in sorted(named.items()) if name not in LEFT_OUT}


def write(name: str, pins: dict[str, str], *more: str) -> None:
    """Write a list of pins."""
    lines = [
        f"# Made by `make lock` from {name}.in; do not edit. Complete: install with `pip install --no-deps -r`.",
        *more,
        *(f"{package}=={version}" for package, version in pins.items()),
    ]
    (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")
    print(f"requirements/{name}.txt: {len(pins)} packages")


def main() -> None:
    pins = resolve("-r", str(HERE / "cpu.in"))
    write("cpu", pins, f"# Left out on purpose (why: lock.py): {', '.join(sorted(LEFT_OUT))}.")
    beside = resolve("-r", str(HERE / "ray.in"), "-c", str(HERE / "cpu.txt"))
    write("ray", {name: version for name, version in beside.items() if name not in pins})


if __name__ == "__main__":
    main()
