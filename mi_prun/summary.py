"""What the commands print about their output."""

from __future__ import annotations

from pathlib import Path

from mi_prun.analysis.analysis import AnalysisRecord
from mi_prun.checkpoint.inspection import describe_healing
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.importing.gguf_header import GgufHeader
from mi_prun.plan.plan import Plan
from mi_prun.planning.limit import BROKEN
from mi_prun.settings import AnalyzeSettings


def imported(header: GgufHeader, output: Path) -> None:
    count = sum(tensor.num_elements for tensor in header.tensors)
    print(f"{output}: {header.text('general.name') or header.path.name}, {count:,} parameters in bfloat16")
    print(f"licence: {header.text('general.license') or 'not stated in the file'}")


def analysis(record: AnalysisRecord, output: Path) -> None:
    """Print the model, the text and the estimates of an analysis."""
    print(
        f"{output}: {record.dense.name}, {record.dense.num_blocks} blocks, {record.dense.num_parameters:,} parameters"
    )
    print(
        f"calibration: {record.calibration.source}, {record.seen_tokens:,} tokens seen (fingerprint "
        f"{record.calibration.fingerprint[:12]})"
    )
    text = record.calibration
    have = text.scoring_tokens + text.ranking_tokens + text.held_out_tokens
    if have < text.wanted_tokens:
        print(f"the text is shorter than was asked for: {have:,} of {text.wanted_tokens:,} tokens, all parts together")
    print(
        f"segment costs: {record.estimator} mutual information of {record.projection} dimensions, "
        f"{record.estimated_tokens:,} tokens"
    )
    if record.estimator != AnalyzeSettings.estimator:  # whose decoder is given: the inequality need not hold
        print(
            f"data processing inequality: {record.dpi_violations:,} of {record.dpi_triples:,} triples break it"
            + (f", by up to {record.dpi_worst_nats:.2g} nats" if record.dpi_violations else "")
        )


def plan(chosen: Plan, output: Path | None) -> None:
    """Print the blocks that a plan drops, and what was measured. output: where it was written, if it was."""
    if output is not None:
        print(f"{output}: {chosen.method} for {chosen.dense.name}")
    blocks = f"{len(chosen.dropped)} of {chosen.dense.num_blocks} blocks ({chosen.block_ratio:.1%})"
    parameters = f"{chosen.parameters_dropped:,} parameters ({chosen.parameter_ratio:.1%})"
    print(f"dropped blocks (0-based): {', '.join(map(str, chosen.dropped))}: {blocks}, {parameters}")
    if chosen.objective is not None:
        objective = chosen.objective
        print(
            f"J: {objective.chosen_nats:.4g} nats, {objective.beside()} (gap {objective.gap_nats:.4g}); "
            f"measured with {chosen.forward_passes:.1f} forward passes"
        )
    if "limit" in chosen.settings:
        more = chosen.settings["cost_of_one_block_more"]
        beyond = "no more can go"
        if more:
            beyond = "one more breaks the model" if more == BROKEN else f"one more would cost {more}, over it"
        blocks_cost = "1 block costs" if len(chosen.dropped) == 1 else f"{len(chosen.dropped)} blocks cost"
        print(f"limit: {chosen.settings['limit']}: {blocks_cost} {chosen.settings['cost']}; {beyond}")
    if chosen.quality is not None:
        quality = chosen.quality
        print(
            f"perplexity {quality.dense_perplexity:.2f} -> {quality.pruned_perplexity:.2f}, KL(dense || pruned) "
            f"{quality.kl_nats_per_token:.4f} nats/token on {quality.text}: {quality.predicted_tokens:,} tokens, "
            f"{quality.protocol}"
        )


def checkpoint(manifest: Manifest, output: Path) -> None:
    """Print the size of a written checkpoint."""
    print(
        f"{output}: {manifest.weights}, {manifest.weight_bytes / 2**20:,.1f} MiB of weights, "
        f"dense {manifest.dense_weight_bytes / 2**20:,.1f} MiB"
    )


def healing(manifest: Manifest, output: Path) -> None:
    for line in describe_healing(manifest.healing):
        print(line)
    checkpoint(manifest, output)
