"""Healing shared over processes: what one process learns. Real torchrun, real accelerate, gloo."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mi_prun.analysis.ranks import Ranks, joined
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.model.loading import load_on
from mi_prun.model.model_folder import open_model
from mi_prun.recovery.heal import heal, heal_folder
from mi_prun.recovery.healing_text import load_healing_text
from mi_prun.recovery.shared_weights import check_peft
from mi_prun.recovery.training import Training
from mi_prun.recovery.training_state import Progress
from mi_prun.text import self_text
from mi_prun.text.weighted_source import parse_sources

FSDP = "ACCELERATE_USE_FSDP"  # `accelerate launch --use_fsdp` sets it
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


@pytest.mark.long
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_learn_what_one_learns(pruned_reference, manual, harbour, tmp_path, heal_settings, sharded):
    options = ["--calibration", f"{manual}=3", "--calibration", str(harbour), "--window", "32", "--rank", "4"]
    options += ["--batch-tokens", "256", "--tokens", "1024", "--device", "cpu", "--train-dtype", "float32"]
    options += [] if sharded else ["--no-fit"]
    shard = ["--use_fsdp", "--fsdp_version", "2"]
    accelerate = [*ACCELERATE, "--num_processes", "2", *shard]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [
            *(accelerate if sharded else torchrun),
            *("-m", "mi_prun", "heal", str(pruned_reference), "-o", str(tmp_path / "two"), *options),
        ],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.count("healed       fit + lora" if sharded else "healed       lora") == 1  # rank 0 alone speaks
    assert done.stderr.count("cross-entropy dense") == 2  # two kinds of text
    one = replace(heal_settings, fit=sharded, fit_tokens=16_384, gate_tokens=2_048, validation_tokens=1_024)
    alone = heal_folder(pruned_reference, tmp_path / "one", replace(one, forward_tokens=256))
    shared = read_manifest(tmp_path / "two")
    assert shared.healing.tokens == alone.healing.tokens == 1_024
    assert shared.healing.settings == alone.healing.settings
    assert [task.healed_right for task in shared.healing.tasks] == [task.healed_right for task in alone.healing.tasks]
    for ours, theirs in zip(shared.healing.quality, alone.healing.quality, strict=True):
        assert ours.text == theirs.text
        assert ours.healed_kl_nats == pytest.approx(theirs.healed_kl_nats, rel=1e-3)
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("two", "one")]
    changed = load_file(pruned_reference / "model.safetensors")
    by_two, by_one = (
        {name for name, dense in changed.items() if not torch.equal(tensor[name], dense)} for tensor in tensors
    )
    assert by_two == by_one != set()
    for name, dense in changed.items():
        ours, theirs = (tensor[name].float() for tensor in tensors)
        if name in by_one:
            assert (ours - theirs).norm() <= 0.03 * (theirs - dense.float()).norm(), name
    assert not any(tmp_path.glob(".*"))


def test_processes_that_load_at_other_speeds_go_by_one_clock(pruned_reference, heal_settings, tmp_path, two_ranks):
    """Under `--minutes` the rates and the end come from one clock."""
    check_peft()  # imported once, before the fork
    plan = read_manifest(pruned_reference).plan
    dense = open_model(plan.dense.name)
    settings = replace(heal_settings, fit=False, tokens=None, minutes=60.0)

    def rank(number):
        shares = []
        step = Training._step

        def noted(training):
            shares.append(training.share_done)
            if len(shares) > 3:
                raise UserError("enough")
            step(training)

        Training._step = noted

        def load():
            time.sleep(number)
            return load_on(dense, "cpu")

        with joined() as ranks, contextlib.suppress(UserError):
            heal(dense, plan, tmp_path / "healed", settings, ranks=ranks, load=load)
        (tmp_path / f"shares-{number}.json").write_text(json.dumps(shares))

    two_ranks(rank)
    first, second = (json.loads((tmp_path / f"shares-{number}.json").read_text()) for number in range(2))
    assert first == second
    assert len(set(first)) == 4


def test_text_that_is_sampled_is_the_same_on_all(reference, tmp_path, two_ranks):
    """Though one has room for fewer windows at a time."""
    dense = open_model(reference)
    model = load_on(dense, "cpu").model

    def rank(number):
        self_text.CPU_CACHE_BYTES >>= 12 * number
        room = self_text.rows_at_once(model, 32)
        with joined() as ranks:
            text = load_healing_text(
                parse_sources(["self"]), dense.tokenizer, window_tokens=32, tokens=256, validation_tokens=64,
                gate_tokens=64, seed=0, model=model, ranks=ranks,
            )  # fmt: skip
            least = ranks.least(room)
        (tmp_path / f"{number}.json").write_text(json.dumps([text.windows(0, 8).tolist(), room, least]))

    two_ranks(rank)
    (ours, room, least), (theirs, less, same) = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert ours == theirs
    assert least == same == less < room


@pytest.mark.parametrize(
    ("batch_tokens", "ranks", "said"),
    [
        (64, Ranks(1, 4), r"64 are 2 windows of 32 tokens, and 4 processes share them; give at least 128"),
        (96, Ranks(1, 2, sharded=True), r"96 are 3 windows of 32 tokens; with FSDP each of 2 .* a multiple of 64"),
    ],
)
def test_a_step_that_the_processes_cannot_share_is_refused(shared, heal_settings, tmp_path, batch_tokens, ranks, said):
    windows = type("Kind", (), {"tokens": torch.zeros(1, 32)})
    text = type("Text", (), {"validation": [windows]})
    weights = shared((1,))
    weights.adapt(2, 4, 0)
    settings = replace(heal_settings, batch_tokens=batch_tokens)
    with pytest.raises(UserError, match=said):
        Training(
            weights, text, None, settings, path=tmp_path / "x", fingerprint="", begun=Progress(), ranks=ranks
        )  # fmt: skip


def test_whole_training_of_a_sharded_model_is_refused(pruned_reference, heal_settings, tmp_path):
    plan = read_manifest(pruned_reference).plan
    dense = open_model(plan.dense.name)
    settings = replace(heal_settings, train="all")
    with pytest.raises(UserError, match=r"--train all holds the trained blocks whole.*take --train lora"):
        heal(dense, plan, tmp_path / "out", settings, ranks=Ranks(0, 2, sharded=True))


@pytest.mark.parametrize(
    ("name", "may_shard", "way_out"),
    [
        (FSDP, False, "so that each process holds the whole model$"),
        ("ACCELERATE_USE_DEEPSPEED", True, "or take FSDP"),
        ("FSDP_OFFLOAD_PARAMS", True, "or take FSDP"),
    ],
)
def test_other_shares_of_one_model_are_refused(monkeypatch, name, may_shard, way_out):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "true")
    with pytest.raises(UserError, match=f"{name} is set: .*{way_out}"), joined(may_shard=may_shard):
        pass
