"""Say where a figure comes from: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from bench.records.schema import Machine
from mi_prun.version import __version__

STEERING = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
    "VLLM_CPU_OMP_THREADS_BIND",
)
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "safetensors")


def this_machine() -> Machine:
    """Describe this machine. There is no host name in it: a record may be published."""
    return Machine(
        cpu=_cpu_model(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpu=_ask_gpu("name,memory.total"),
        system=f"{platform.system()} {platform.machine()}",
        driver=_ask_gpu("driver_version"),
    )


def machine_words(machine: Machine) -> str:
    """Say a machine in one line: processor, cores, memory, GPU, system."""
    gpu = f"{machine.gpu}, driver {machine.driver or 'unknown'}" if machine.gpu else "no GPU"
    return f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB; {gpu}; {machine.system}"


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the packages that matter, of those installed."""
    installed = {"mi-prun": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def environment() -> dict[str, str]:
    """Return the variables in force that steer an engine. None of them may hold a path or a secret."""
    return {name: os.environ[name] for name in STEERING if name in os.environ}


def commit() -> str | None:
    """Return the commit of the source tree this runs from, with `+` behind it where files have changed.

    MI_PRUN_COMMIT says it for a copy that came without its history. None where nothing does.
    """
    if told := os.environ.get("MI_PRUN_COMMIT"):
        return told
    source = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=source, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie inside another repository
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _ask_gpu(fields: str) -> str | None:
    """Ask the driver for fields of each GPU, so that this process takes nothing on the device."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(done.stdout.strip().splitlines()) or None
