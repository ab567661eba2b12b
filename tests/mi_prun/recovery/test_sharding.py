"""Frozen blocks shared over two processes. Real torchrun, gloo."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mi_prun.recovery.sharding import is_shared, overwrite

SCRIPT = """
import sys
import torch
from mi_prun.analysis.ranks import joined
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.closed_form import refitted
from mi_prun.recovery.healing_text import load_healing_text
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.recovery.sharding import is_shared
from mi_prun.text.weighted_source import parse_sources

folder = open_model(sys.argv[1])
tokens = torch.arange(32).view(2, 16)

def student_of(weights):
    with weights.student():
        return weights.model.logits(weights.run(weights.embed(tokens), weights.kept))

with joined(may_shard=True) as ranks, torch.no_grad():
    assert ranks.sharded
    alone, shared, again = (SharedWeights(load_on(folder, "cpu"), (2,), folder.family.block_prefix) for _ in range(3))
    left_whole = refitted(shared)
    assert left_whole == ["model.layers.1.mlp.down_proj.weight"], left_whole
    shared.shard(torch.device("cpu"), left_whole)
    again.shard(torch.device("cpu"), left_whole)
    for name in shared.names(shared.kept):
        tensor, dense = shared.shared(name), alone.shared(name)
        assert is_shared(tensor) == (name not in left_whole), name
        if is_shared(tensor):
            assert 2 * tensor.to_local().numel() == dense.numel(), name
        assert torch.equal(tensor.detach().full_tensor() if is_shared(tensor) else tensor.detach(), dense), name
    assert torch.equal(student_of(shared), student_of(alone))
    # Sampling may be the first run of blocks that are shared: what comes after it, a training too, must be possible.
    sampled = load_healing_text(
        parse_sources(["self"]), folder.tokenizer, window_tokens=16, tokens=32, validation_tokens=16, gate_tokens=16,
        seed=0, model=again.model.model, ranks=ranks,
    )
    assert torch.equal(student_of(again), student_of(alone))
    assert len(sampled.windows(0, 2)) == 2
    again.adapt(rank=2, alpha=4, seed=0)
    with torch.enable_grad():
        student_of(again).square().mean().backward()
    assert all(parameter.grad is not None for parameter in again.trained.values())
    gathered = []
    shared.model.blocks[0].register_forward_pre_hook(lambda *args: gathered.append(args))
    shared.embed(tokens)  # runs no block, so no block is put together
    assert not gathered
    shared.run(shared.embed(tokens), [0])
    assert len(gathered) == 1
    given = {name: alone.shared(name) + 0.01 for name in alone.names([1])}
    shared.settle(given.items())
    alone.settle(given.items())
    assert torch.equal(student_of(shared), student_of(alone))
print("alike")
"""


@pytest.mark.long
def test_each_process_holds_its_share_and_computes_the_same(random_model, tmp_path):
    script = tmp_path / "shares.py"
    script.write_text(SCRIPT)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*run, str(random_model("llama"))], capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.count("alike") == 2


def test_a_tensor_of_one_process_is_not_shared():
    tensor = torch.ones(2)
    assert not is_shared(tensor)
    with pytest.raises(TypeError, match="only a shared tensor"):
        overwrite(tensor, tensor)
