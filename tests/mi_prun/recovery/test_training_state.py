from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.errors import UserError
from mi_prun.recovery import training_state
from mi_prun.recovery.heal import fingerprint_of, heal_folder
from mi_prun.recovery.training import Training
from mi_prun.recovery.training_state import Progress, load_state, save_state, state_path

PROGRAM = """
import sys
from pathlib import Path
from mi_prun.recovery.heal import fingerprint_of, heal_folder
from mi_prun.settings import HealSettings
heal_folder(Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3]))
"""


def started(pruned, out, settings):
    """A healing in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pruned), str(out), repr(settings)],
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def saved_ns(out):
    """When the state of a healing was saved last; 0: not yet."""
    return state_path(out).stat().st_mtime_ns if state_path(out).exists() else 0


@pytest.mark.long
def test_killed_at_any_moment_and_started_again_gives_the_same_bits(pruned_reference, tmp_path, heal_settings):
    """Four times, after one state more and a moment of chance: in a step, a check, or while a state is written."""
    settings = replace(heal_settings, save_minutes=0.0, tokens=2_048)
    whole = started(pruned_reference, tmp_path / "whole", settings)
    out, chance, seen = tmp_path / "healed", random.Random(0), {0}
    for _ in range(4):
        process = started(pruned_reference, out, settings)
        while saved_ns(out) in seen:
            assert process.poll() is None
            time.sleep(0.01)
        seen.add(saved_ns(out))
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
    assert started(pruned_reference, out, settings).wait() == 0
    assert whole.wait() == 0
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not state_path(out).exists()


@pytest.mark.long
def test_whole_training_goes_on_with_the_same_bits(pruned_reference, tmp_path, heal_settings, monkeypatch):
    settings = replace(heal_settings, train="all", save_minutes=0.0, fit_tokens=1_024, learning_rate=1e-4)
    heal_folder(pruned_reference, tmp_path / "whole", settings)
    save = Training.save

    def save_and_end(training):
        save(training)
        if training.progress.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "save", save_and_end)
    with pytest.raises(KeyboardInterrupt):
        heal_folder(pruned_reference, tmp_path / "healed", settings)
    monkeypatch.setattr(Training, "save", save)
    heal_folder(pruned_reference, tmp_path / "healed", settings)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "healed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_state_comes_back_as_it_was(tmp_path):
    progress = Progress(step=3, tokens=300, seconds=1.5, checks_nats=(0.5, 0.25))
    save_state(tmp_path / "state", "mine", progress, {"own": {"a.b/c": torch.arange(3)}, "best": {"x": torch.ones(2)}})
    saved = load_state(tmp_path / "state", "mine")
    assert saved.progress == progress
    assert saved.groups["own"]["a.b/c"].tolist() == [0, 1, 2]
    assert load_state(tmp_path / "none", "mine") is None


def test_the_state_of_another_healing_is_refused_and_forgotten_with_force(pruned_reference, tmp_path, heal_settings):
    out = tmp_path / "healed"
    save_state(state_path(out), "other", Progress(step=1), {})
    with pytest.raises(UserError, match=r"interrupted healing with other settings, text or model; .* --force"):
        heal_folder(pruned_reference, out, heal_settings)
    with pytest.raises(UserError, match="--rank 1000"):  # it is past that
        heal_folder(pruned_reference, out, replace(heal_settings, rank=1_000), force=True)


def test_the_state_of_a_healing_on_text_that_was_sampled_otherwise_is_refused(
    pruned_reference, tmp_path, heal_settings
):
    """On a GPU what is sampled depends on the memory that is free."""
    settings = replace(heal_settings, sources=("self",))
    state = state_path(tmp_path / "healed")
    mine = fingerprint_of(read_manifest(pruned_reference).plan, settings)
    save_state(state, mine, Progress(step=1, held_out_sha256="0" * 64), {})
    with pytest.raises(UserError, match=r"healing on text that was sampled otherwise.* --force to begin anew"):
        heal_folder(pruned_reference, tmp_path / "healed", settings)
    assert load_state(state, mine).progress.step == 1


def test_what_changes_no_result_may_change_between_two_starts(pruned_reference, heal_settings):
    """A healing that ran out of memory goes on with `--checkpoint-blocks`."""
    plan = read_manifest(pruned_reference).plan
    mine = fingerprint_of(plan, heal_settings)
    assert mine == fingerprint_of(plan, replace(heal_settings, checkpoint_blocks=True, save_minutes=9.0))
    assert mine != fingerprint_of(plan, replace(heal_settings, rank=5))


def test_the_state_of_another_release_is_one_line(tmp_path):
    before = json.dumps({"step": 3, "best_nats": 0.25, "checked": 1})
    save_file({"own/x": torch.ones(2)}, tmp_path / "state", {"fingerprint": "mine", "progress": before})
    with pytest.raises(UserError, match="is the state of a healing by another release; remove it, or give --force"):
        load_state(tmp_path / "state", "mine")


def test_a_state_that_was_cut_off_is_one_line(tmp_path):
    save_state(tmp_path / "state", "mine", Progress(), {"own": {"a": torch.ones(50)}})
    data = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(data[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        load_state(tmp_path / "state", "mine")


def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch):
    save_state(tmp_path / "state", "mine", Progress(step=1), {})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_state, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_state(tmp_path / "state", "mine", Progress(step=2), {})
    assert load_state(tmp_path / "state", "mine").progress.step == 1
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_another_text_under_the_same_name_is_another_healing(pruned_reference, tmp_path, heal_settings):
    plan = read_manifest(pruned_reference).plan
    (tmp_path / "a.txt").write_text("one")
    settings = replace(heal_settings, sources=(str(tmp_path / "a.txt"),))
    before = fingerprint_of(plan, settings)
    assert fingerprint_of(plan, settings) == before
    (tmp_path / "a.txt").write_text("two")
    assert fingerprint_of(plan, settings) != before
