"""The writer's measurement: its random checkpoint is a real one, and the record follows from the times."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.studies import writer
from bench.studies.writer import block_shapes, config_of, make_checkpoint, measure
from mi_prun.model.model_folder import open_model


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 102,528 parameters, in place of sixty million; noise of 256 bytes, in place of 64 MiB."""
    for name, value in (("HIDDEN", 128), ("INTERMEDIATE", 128), ("KV", 64), ("VOCABULARY", 32)):
        monkeypatch.setattr(writer, name, value)
    noise = SimpleNamespace(urandom=lambda count: bytes(range(256)), getloadavg=os.getloadavg)
    monkeypatch.setattr(writer, "os", noise)


BLOCK_BYTES = 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 128 + 2 * 128)


def test_a_block_has_llamas_tensors() -> None:
    shapes = block_shapes(7)
    assert all(name.startswith("model.layers.7.") for name in shapes)
    assert shapes["model.layers.7.self_attn.k_proj.weight"] == (64, 128)  # two query heads, one KV head
    assert len(shapes) == 9
    config = config_of(3)
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (3, 2, 1)


@pytest.mark.parametrize(
    ("gigabytes", "blocks"),
    [(6 * BLOCK_BYTES / 1e9, 6), (6.4 * BLOCK_BYTES / 1e9, 6), (0.0, writer.DROP_EVERY)],  # one block goes at least
)
def test_the_checkpoint_has_about_the_size_asked_for(tmp_path: Path, gigabytes: float, blocks: int) -> None:
    assert make_checkpoint(tmp_path, gigabytes) == blocks
    folder = open_model(tmp_path)
    assert folder.num_blocks == blocks
    assert folder.weight_bytes == blocks * BLOCK_BYTES + 2 * (32 * 128 + 128)
    homes = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(homes.values()) == {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert set(homes) == {name for shard in folder.shards for name in shard.tensors}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`apply` and `cp` without processes, of given seconds and peaks: three rounds."""
    done: list[Any] = []
    seconds = iter((2.0, 1.0, 4.0))
    copying = iter((1.0, 0.5, 2.5))
    peaks = iter(((100_000, 300_000), (90_000, 250_000), (95_000, 200_000)))

    def run_apply(dense: Path, plan: Path, out: Path, max_shard_bytes: int) -> dict[str, Any]:
        assert not out.exists()  # each round writes anew
        out.mkdir()
        (out / "model.safetensors").write_bytes(bytes(3_000_000))
        done.append((json.loads(plan.read_text())["dropped"], max_shard_bytes))
        before, after = next(peaks)
        return {"seconds": next(seconds), "interpreter_rss_kib": before, "peak_rss_kib": after}

    def run_cp(source: Path, out: Path) -> float:
        assert source.name == "pruned"
        out.mkdir()
        return next(copying)

    monkeypatch.setattr(writer, "run_apply", run_apply)
    monkeypatch.setattr(writer, "run_cp", run_cp)
    monkeypatch.setattr(writer, "commit", lambda: "0123456789ab")
    return done


def test_the_record_follows_from_the_rounds(tmp_path: Path, timed: list[Any]) -> None:
    record = measure(tmp_path, 8 * BLOCK_BYTES / 1e9, 3, 5_000, None)
    assert timed == [([3, 7], 5_000)] * 3  # every fourth block
    assert (record["blocks"], record["dropped"]) == (8, 2)
    assert (record["apply_seconds"], record["cp_seconds"]) == ([2, 1, 4], [1, 0.5, 2.5])
    # Medians of 2 s and 1 s for 3 MB.
    assert (record["kept_bytes"], record["apply_mb_per_s"], record["cp_mb_per_s"]) == (3_000_000, 1.5, 3.0)
    assert record["apply_speed_over_cp"] == 0.5
    # The largest peak, less the least that an interpreter takes: KiB to MB.
    assert record["apply_peak_rss_mb"] == round(300_000 * 1024 / 1e6, 1)
    assert record["apply_peak_rss_over_interpreter_mb"] == round(210_000 * 1024 / 1e6, 1)
    assert record["dense_bytes"] == 8 * BLOCK_BYTES + 2 * (32 * 128 + 128)
    assert not any(name.startswith("mergekit") for name in record)
    assert json.loads(json.dumps(record)) == record


def test_mergekit_runs_beside_them_where_it_is_named(
    tmp_path: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_mergekit(program: str, dense: Path, plan: Any, out: Path) -> dict[str, float]:
        assert (program, out.name, plan.kept) == ("mergekit-yaml", "merged", (0, 1, 2))
        assert not (tmp_path / "pruned").exists()  # it makes room first
        return {"seconds": 6.0, "peak_rss_kib": 1_000_000}

    monkeypatch.setattr(writer, "run_mergekit", run_mergekit)
    record = measure(tmp_path, 0.0, 1, 5_000, "mergekit-yaml")
    assert (record["mergekit_seconds"], record["mergekit_mb_per_s"], record["mergekit_peak_rss_mb"]) == (6, 0.5, 1024)
