"""Measure the checkpoint writer against `cp` of the bytes it keeps: time, and peak memory.

    python -m bench.studies.writer --gigabytes 4 --folder /some/disk

A random bf16 checkpoint of Llama's shapes is made, and every fourth block dropped. `apply` (in a process of its own,
its checks, hashes and fsyncs included) and `cp` followed by fsync of the same kept files take turns. The source lies in
the page cache for both where memory allows. With `--mergekit PATH/mergekit-yaml` its passthrough merge of the same
slices runs beside them. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.records.machine import commit, this_machine
from bench.studies.mergekit_equal import recipe
from mi_prun.console import run_command
from mi_prun.files import sync
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.version import __version__

HIDDEN, INTERMEDIATE, KV, VOCABULARY = 2048, 8192, 512, 32_000
SHARDS = 2
DROP_EVERY = 4

APPLY = """
import json, sys, time
from pathlib import Path
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Plan
dense, plan, out, max_shard_bytes = sys.argv[1:]
def peak_rss_kib():
    # ru_maxrss would begin at the parent's.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak_rss_kib()
start = time.perf_counter()
write_checkpoint(open_model(dense), Plan.read(Path(plan)), Path(out), max_shard_bytes=int(max_shard_bytes))
seconds = time.perf_counter() - start
after = peak_rss_kib()
print(json.dumps({"seconds": seconds, "interpreter_rss_kib": before, "peak_rss_kib": after}))
"""


def block_shapes(block: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a block's tensors."""
    prefix = f"model.layers.{block}."
    return {
        prefix + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        prefix + "self_attn.k_proj.weight": (KV, HIDDEN),
        prefix + "self_attn.v_proj.weight": (KV, HIDDEN),
        prefix + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        prefix + "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        prefix + "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
        prefix + "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        prefix + "input_layernorm.weight": (HIDDEN,),
        prefix + "post_attention_layernorm.weight": (HIDDEN,),
    }


def make_checkpoint(folder: Path, gigabytes: float) -> int:
    """Write a random checkpoint of about that size; return its number of blocks."""
    block_bytes = sum(2 * math.prod(shape) for shape in block_shapes(0).values())
    blocks = max(DROP_EVERY, round(gigabytes * 1e9 / block_bytes))
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for block in range(blocks):
        shapes |= block_shapes(block)
    names = list(shapes)
    per_shard = -(-len(names) // SHARDS)
    weight_map = {}
    noise = memoryview(os.urandom(64 << 20))
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        header, position = {}, 0
        for name in names[number * per_shard : (number + 1) * per_shard]:
            end = position + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [position, end]}
            weight_map[name] = file
            position = end
        text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            while position:
                position -= out.write(noise[: min(position, len(noise))])
        sync(folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config_of(blocks)))
    return blocks


def config_of(blocks: int) -> dict[str, Any]:
    """Return the config of a model with that many blocks of `block_shapes`."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": blocks,
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_attention_heads": HIDDEN // 64,
        "num_key_value_heads": KV // 64, "vocab_size": VOCABULARY, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip


def run_apply(dense: Path, plan: Path, out: Path, max_shard_bytes: int) -> dict[str, Any]:
    """Run `apply` in a process of its own, and return its seconds and peak memory."""
    arguments = [str(dense), str(plan), str(out), str(max_shard_bytes)]
    done = subprocess.run([sys.executable, "-c", APPLY, *arguments], check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_cp(source: Path, out: Path) -> float:
    """Copy a folder with `cp`, fsync its files, and return the seconds."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    for file in out.iterdir():
        sync(file)
    return time.perf_counter() - start


def run_mergekit(program: str, dense: Path, plan: Plan, out: Path) -> dict[str, float]:
    """Run the passthrough merge of the kept slices; the peak memory is that of its process."""
    path = out.with_suffix(".yaml")
    path.write_text(recipe(dense, plan.kept))
    start = time.perf_counter()
    subprocess.run([program, str(path), str(out)], check=True, capture_output=True)
    for file in out.iterdir():
        sync(file)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_rss_kib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint (default 4)")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; about 3.5x as much is needed there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-shard-bytes", type=int, default=5_000_000_000)
    parser.add_argument("--mergekit", default=None, metavar="PROGRAM", help="mergekit-yaml of another environment")
    arguments = parser.parse_args()

    def run() -> None:
        with tempfile.TemporaryDirectory(prefix="writer-", dir=arguments.folder) as name:
            print(
                json.dumps(
                    measure(
                        Path(name), arguments.gigabytes, arguments.rounds, arguments.max_shard_bytes, arguments.mergekit
                    )
                )
            )

    sys.exit(run_command(run))


def measure(work: Path, gigabytes: float, rounds: int, max_shard_bytes: int, mergekit: str | None) -> dict[str, Any]:
    """Time `apply`, `cp` and mergekit in turn, and return the record."""
    dense = work / "dense"
    dense.mkdir()
    blocks = make_checkpoint(dense, gigabytes)
    identity = open_model(dense).identity
    dropped = tuple(range(DROP_EVERY - 1, blocks, DROP_EVERY))
    plan = Plan(dense=identity, dropped=dropped, kept=kept_blocks(blocks, dropped), method="by hand")
    plan.write(work / "plan.json")
    ours, cp = [], []
    for turn in range(rounds):
        ours.append(run_apply(dense, work / "plan.json", work / "pruned", max_shard_bytes))
        cp.append(run_cp(work / "pruned", work / "copy"))
        shutil.rmtree(work / "copy")
        if turn < rounds - 1:
            shutil.rmtree(work / "pruned")
        print(f"round {turn + 1}: apply {ours[-1]['seconds']:.2f} s, cp {cp[-1]:.2f} s", file=sys.stderr)
    kept_bytes = sum(file.stat().st_size for file in (work / "pruned").glob("*.safetensors"))
    apply_s = statistics.median(run["seconds"] for run in ours)
    cp_s = statistics.median(cp)
    peak_mb = max(run["peak_rss_kib"] for run in ours) * 1024 / 1e6
    own_mb = min(run["interpreter_rss_kib"] for run in ours) * 1024 / 1e6
    record: dict[str, Any] = {
        "bench": "writer",
        "date_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tool_version": __version__,
        "machine": this_machine().model_dump(),
        "commit": commit(),
        "dense_bytes": open_model(dense).weight_bytes,
        "kept_bytes": kept_bytes,
        "max_shard_bytes": max_shard_bytes,
        "load_average_at_end": os.getloadavg()[0],
        "blocks": blocks,
        "dropped": len(dropped),
        "apply_seconds": [round(run["seconds"], 3) for run in ours],
        "cp_seconds": [round(seconds, 3) for seconds in cp],
        "apply_mb_per_s": round(kept_bytes / 1e6 / apply_s, 1),
        "cp_mb_per_s": round(kept_bytes / 1e6 / cp_s, 1),
        "apply_speed_over_cp": round(cp_s / apply_s, 3),
        "apply_peak_rss_mb": round(peak_mb, 1),
        "apply_peak_rss_over_interpreter_mb": round(peak_mb - own_mb, 1),
    }
    if mergekit:
        shutil.rmtree(work / "pruned")
        merged = run_mergekit(mergekit, dense, plan, work / "merged")
        record["mergekit_seconds"] = round(merged["seconds"], 3)
        record["mergekit_mb_per_s"] = round(kept_bytes / 1e6 / merged["seconds"], 1)
        record["mergekit_peak_rss_mb"] = round(merged["peak_rss_kib"] * 1024 / 1e6, 1)
    return record


if __name__ == "__main__":
    main()
