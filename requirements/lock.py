"""Turn the short list of direct dependencies into the complete pinned list.

    make lock        # writes requirements/cpu.txt from requirements/cpu.in

pip resolves `cpu.in` without installing anything; what it would install is written down, one exact version a line,
except for the three packages below. The result is installed with `pip install --no-deps`.
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


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        resolve = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*resolve, "--report", str(report), "-r", str(HERE / "cpu.in")], check=True)
        installs = json.loads(report.read_text())["install"]
    pins: dict[str, str] = {}
    for item in installs:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        if name not in LEFT_OUT:
            pins[name] = item["metadata"]["version"]
    lines = [
        "# Made by `make lock` from cpu.in; do not edit. Complete: install with `pip install --no-deps -r`.",
        f"# Left out on purpose (why: lock.py): {', '.join(sorted(LEFT_OUT))}.",
        *(f"{name}=={version}" for name, version in sorted(pins.items())),
    ]
    (HERE / "cpu.txt").write_text("\n".join(lines) + "\n")
    print(f"requirements/cpu.txt: {len(pins)} packages")


if __name__ == "__main__":
    main()
