"""What the commands say of what they made."""

from __future__ import annotations

from pathlib import Path

from mi_prun.analysis.analysis import AnalysisRecord
from mi_prun.checkpoint.inspection import describe_healing
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.plan.plan import Plan


def analysis(record: AnalysisRecord, output: Path) -> None:
    print(
        f"{output}: {record.dense.name}, {record.dense.num_blocks} blocks, {record.dense.num_parameters:,} parameters"
    )
    print(
        f"calibration: {record.calibration.source}, {record.seen_tokens:,} tokens seen (fingerprint "
        f"{record.calibration.fingerprint[:12]})"
    )
    print(
        f"segment costs: {record.estimator} mutual information of {record.projection} dimensions, "
        f"{record.estimated_tokens:,} tokens"
    )
    print(
        f"data processing inequality: {record.dpi_violations:,} of {record.dpi_triples:,} triples break it"
        + (f", by up to {record.dpi_worst_nats:.2g} nats" if record.dpi_violations else "")
    )


def plan(made: Plan, output: Path | None) -> None:
    if output is not None:
        print(f"{output}: {made.method} for {made.dense.name}")
    blocks = f"{len(made.dropped)} of {made.dense.num_blocks} blocks ({made.block_ratio:.1%})"
    parameters = f"{made.parameters_dropped:,} parameters ({made.parameter_ratio:.1%})"
    print(f"dropped blocks (0-based): {', '.join(map(str, made.dropped))}: {blocks}, {parameters}")
    if made.objective is not None:
        print(
            f"J: {made.objective.chosen_nats:.4g} nats, {made.objective.beside()} (gap {made.objective.gap_nats:.4g}); "
            f"measured with {made.forward_passes:.1f} forward passes"
        )
    if "limit" in made.settings:
        more = made.settings["cost_of_one_block_more"]
        print(
            f"limit: {made.settings['limit']}: {len(made.dropped)} blocks cost {made.settings['cost']}; "
            + (f"one more would cost {more}, over it" if more else "no more can go")
        )
    if made.quality is not None:
        quality = made.quality
        print(
            f"perplexity {quality.dense_perplexity:.2f} -> {quality.pruned_perplexity:.2f}, KL(dense || pruned) "
            f"{quality.kl_nats_per_token:.4f} nats/token on {quality.text}: {quality.predicted_tokens:,} tokens, "
            f"{quality.protocol}"
        )


def checkpoint(manifest: Manifest, output: Path) -> None:
    print(
        f"{output}: {manifest.weights}, {manifest.weight_bytes / 2**20:,.1f} MiB of weights, "
        f"dense {manifest.dense_weight_bytes / 2**20:,.1f} MiB"
    )


def healing(manifest: Manifest, output: Path) -> None:
    for line in describe_healing(manifest.healing):
        print(line)
    checkpoint(manifest, output)
