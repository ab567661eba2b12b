"""Which model an arm is: the same after a restart, another one when the model under the name is another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from serve.ab.arms.arm_identity import digest_of
from serve.ab.config import ArmConfig


def test_what_makes_an_arm_another_one(reference: Path, prune: Callable[..., Path], tmp_path: Path) -> None:
    plans = []
    for dropped in ([2, 3], [4]):
        folder = prune(reference, tmp_path / f"pruned-{dropped[0]}", dropped)
        plans.append(tmp_path / f"plan-{dropped[0]}.json")
        plans[-1].write_text(json.dumps(json.loads((folder / "mi_prun.json").read_text())["plan"]))
    arms = [
        ArmConfig(url="http://h"),
        ArmConfig(url="http://h:1"),
        ArmConfig(url="http://h", upstream_model="m"),
        ArmConfig(model="owner/model"),
        ArmConfig(model="owner/model", flags=("--dtype", "half")),
        ArmConfig(model=str(reference)),
        ArmConfig(plan=plans[0]),
        ArmConfig(plan=plans[1]),
    ]
    digests = [digest_of(arm) for arm in arms]
    assert len(set(digests)) == len(arms)
    assert [digest_of(arm) for arm in arms] == digests

    adapter = tmp_path / "learned"
    healed = [
        ArmConfig(plan=plans[0], flags=flags) for flags in (("--adapter", str(adapter)), (f"--adapter={adapter}",))
    ]
    adapter.write_bytes(b"one")
    learned = [digest_of(arm) for arm in healed]
    adapter.write_bytes(b"other")
    assert not set(learned) & {digest_of(arm) for arm in healed}

    served = tmp_path / "served"
    shutil.copytree(tmp_path / "pruned-2", served)
    before = digest_of(ArmConfig(model=str(served)))
    shutil.rmtree(served)
    shutil.copytree(tmp_path / "pruned-2", served)
    assert digest_of(ArmConfig(model=str(served))) == before
    shutil.rmtree(served)
    shutil.copytree(tmp_path / "pruned-4", served)
    assert digest_of(ArmConfig(model=str(served))) != before


def test_weights_that_were_trained_on_are_another_model(reference: Path, tmp_path: Path) -> None:
    """Of the same shapes, under the same config."""
    folder = tmp_path / "model"
    shutil.copytree(reference, folder)
    before = digest_of(ArmConfig(model=str(folder)))
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest_of(ArmConfig(model=str(folder))) != before
