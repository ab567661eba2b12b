"""kill -9 while a checkpoint is written: nothing or a whole one."""

from __future__ import annotations

import json
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.inspection import read_manifest, verify
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan, kept_blocks

MOMENTS = 20
BLOCKS = 12
BLOCK_BYTES = 4 << 20
CHILD = """
import sys
from pathlib import Path
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan
dense, plan, out = map(Path, sys.argv[1:])
model, plan = open_model(dense), Plan.read(plan)
print("ready", flush=True)
write_checkpoint(model, plan, out, max_shard_bytes=9 << 20, force=True)
"""


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """12 blocks of 4 MiB each; no model that runs, but one that takes some time to write."""
    folder = tmp_path / "dense"
    folder.mkdir()
    header = {
        f"model.layers.{block}.w": {
            "dtype": "U8",
            "shape": [BLOCK_BYTES],
            "data_offsets": [block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES],
        }
        for block in range(BLOCKS)
    }
    text = json.dumps(header).encode()
    data = random.Random(5).randbytes(BLOCKS * BLOCK_BYTES)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": BLOCKS}))
    return folder


def child(dense: Path, plan: Path, out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(dense), str(plan), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def plan_of(dense: Path, dropped: tuple[int, ...]) -> Plan:
    identity = open_model(dense).identity
    return Plan(dense=identity, dropped=dropped, kept=kept_blocks(BLOCKS, dropped), method="by hand")


@pytest.mark.parametrize("replaces", [pytest.param(False, marks=pytest.mark.long), True], ids=["new", "replaces"])
def test_kill_at_random_moments(dense, tmp_path, replaces):
    place = tmp_path / "place"
    place.mkdir()
    out = place / "out"
    old, new = plan_of(dense, (0, 1)), plan_of(dense, (4,))
    new.write(tmp_path / "plan.json")
    first = child(dense, tmp_path / "plan.json", out)
    start = time.perf_counter()
    assert first.wait() == 0
    whole_s = time.perf_counter() - start
    verify(out)
    chance = random.Random(17)
    outcomes = []
    for _ in range(MOMENTS // 2):
        if replaces:
            write_checkpoint(open_model(dense), old, out, force=True)
        else:
            subprocess.run(["rm", "-rf", str(out)], check=True)
        process = child(dense, tmp_path / "plan.json", out)
        time.sleep(chance.uniform(0, whole_s))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            verify(out)
            outcomes.append(read_manifest(out).plan.dropped)
        else:
            outcomes.append(None)
    assert set(outcomes) <= ({old.dropped, new.dropped} if replaces else {None, new.dropped})
    assert any(outcome != new.dropped for outcome in outcomes)  # some came before it was done
    hidden = [path.name for path in place.iterdir() if path != out]
    assert all(name.startswith(".out.partial-") for name in hidden)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupt_leaves_nothing_behind(dense, tmp_path, number):
    """Through the command itself, whose SIGTERM unwinds as Ctrl-C does."""
    place = tmp_path / "place"
    place.mkdir()
    plan_of(dense, (4,)).write(tmp_path / "plan.json")
    command = "import sys; from mi_prun.cli import main; sys.exit(main())"
    arguments = ["apply", str(dense), str(tmp_path / "plan.json"), "-o", str(place / "out")]
    process = subprocess.Popen([sys.executable, "-c", command, *arguments])
    while process.poll() is None and not any(place.iterdir()):
        time.sleep(0.001)
    process.send_signal(number)
    status = process.wait()
    found = list(place.iterdir())
    if found:  # it was quicker than the signal, if not always with its last words
        assert status in (0, 128 + number)
        assert found == [place / "out"]
        verify(place / "out")
    else:
        assert status == 128 + number
