"""What quality is measured of: the files of a checkpoint, or what a virtual healed one stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.models.measured_model import open_measured_models
from bench.quality import quality
from bench.quality.quality import with_quality_on
from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.checkpoint.healing import Healing
from mi_prun.checkpoint.inspection import read_manifest
from mi_prun.model.model_folder import open_model
from mi_prun.plan.plan import Quality
from mi_prun.recovery.adapter import Adapter, healed_by, write_adapter

NAME = "model.layers.0.mlp.down_proj.weight"
HEALING = Healing(method="fit", text="self", tokens=0, fit_tokens=8, seconds=1.0, seed=0)


def test_a_virtual_healed_folder_is_measured_with_what_it_learned(
    tmp_path: Path, dense: Path, prune: Callable[..., Path], monkeypatch
) -> None:
    plain = prune(dense, tmp_path / "plain", [1])
    plan = read_manifest(plain).plan
    own = load_file(dense / "model.safetensors")[NAME] + 1
    write_adapter(tmp_path / "adapter", Adapter({NAME: own}, {}, {}), plan, HEALING)
    healed = tmp_path / "healed"
    by = healed_by(tmp_path / "adapter", plan)
    write_checkpoint(open_model(dense), plan, healed, virtual=True, healed=by)
    with quality._whole(str(healed)) as folder:
        tensors = load_file(Path(folder) / "model.safetensors")
    before = load_file(plain / "model.safetensors")
    assert torch.equal(tensors.pop(NAME), own)
    before.pop(NAME)
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    with quality._whole(str(plain)) as folder:
        assert folder == str(plain)

    virtual = prune(dense, tmp_path / "virtual", [2], virtual=True)
    asked: list[str] = []

    def measured(command, **_):
        asked.extend(command[7:])
        line = Quality(
            text="t", protocol="p", window_tokens=8, windows=1, predicted_tokens=7, dense_perplexity=2.0,
            pruned_perplexity=3.0, kl_nats_per_token=0.1,
        ).model_dump_json()  # fmt: skip
        return type("Done", (), {"returncode": 0, "stdout": "\n".join([line] * 3)})

    monkeypatch.setattr(quality.subprocess, "run", measured)
    monkeypatch.setattr(quality, "text_digest", lambda text: text)
    models = open_measured_models(str(dense), [str(plain), str(healed), str(virtual)])
    judged = with_quality_on(models, "text", 0).all
    assert asked == [str(plain), str(healed), "2"]
    assert [model.quality_measured_on for model in judged] == [None, "checkpoint", "checkpoint", "plan"]
