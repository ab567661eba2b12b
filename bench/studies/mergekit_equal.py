"""Compare our checkpoint with mergekit's passthrough of the same slices: every tensor must be the same byte for byte.

    python -m bench.studies.mergekit_equal --mergekit PATH/mergekit-yaml

mergekit lives in an environment of its own (`pip install mergekit`) and is run as a program. The dense model is the
bundled one. The last line printed is JSON; the exit status is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.console import run_command
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.plan.plan import Plan, kept_blocks
from mi_prun.plan.ratio import parse_blocks
from mi_prun.selection.objective import runs

REFERENCE = Path(__file__).parents[1] / "reference"


def recipe(dense: Path, kept: tuple[int, ...]) -> str:
    """Write mergekit's passthrough of the kept slices, as YAML."""
    return "merge_method: passthrough\ndtype: bfloat16\nslices:\n" + "".join(
        f"- sources:\n  - model: {dense}\n    layer_range: [{begin}, {end}]\n" for begin, end in runs(kept)
    )


def contents(model: ModelFolder) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and bytes of every tensor, by name."""
    tensors = {}
    for shard in model.shards:
        data = shard.path.read_bytes()
        for name, info in shard.tensors.items():
            tensors[name] = (info.dtype, info.shape, data[info.begin : info.end])
    return tensors


def compare(dense: Path, dropped: tuple[int, ...], mergekit: str, work: Path) -> dict[str, Any]:
    """Write the checkpoint both ways and say what differs."""
    model = open_model(dense)
    identity = model.identity
    plan = Plan(dense=identity, dropped=dropped, kept=kept_blocks(model.num_blocks, dropped), method="by hand")
    write_checkpoint(model, plan, work / "ours")
    (work / "recipe.yaml").write_text(recipe(dense.resolve(), plan.kept))
    subprocess.run([mergekit, str(work / "recipe.yaml"), str(work / "theirs")], check=True, capture_output=True)
    ours, theirs = contents(open_model(work / "ours")), contents(open_model(work / "theirs"))
    # mergekit writes a tied head out a second time; the model reads the embedding for it.
    only_theirs = sorted(theirs.keys() - ours.keys())
    if model.config.get("tie_word_embeddings") and only_theirs == ["lm_head.weight"]:
        theirs.pop("lm_head.weight")
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return {"dropped": dropped, "tensors": len(ours), "different": different, "only_in_mergekit": only_theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", required=True, metavar="PROGRAM", help="mergekit-yaml of another environment")
    parser.add_argument("--dense", type=Path, default=REFERENCE, help="a Llama checkpoint in bf16 (default: bundled)")
    parser.add_argument("--drop", default="3,4,8", help="blocks, 0-based (default 3,4,8)")
    arguments = parser.parse_args()

    def run() -> None:
        dropped = parse_blocks(arguments.drop, open_model(arguments.dense).num_blocks)
        with tempfile.TemporaryDirectory(prefix="mergekit-") as work:
            comparison = compare(arguments.dense, dropped, arguments.mergekit, Path(work))
        print(json.dumps(comparison))
        if comparison["different"]:
            raise SystemExit(1)

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
