"""`mi-prun analyze`: model folder -> analysis. One pass serves every ratio."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mi_prun.analysis.analysis import Analysis, AnalysisRecord, fingerprint_of, write_analysis
from mi_prun.analysis.boundaries import SKIP_TOKENS, Boundaries, merged, pair_angles, sample_tokens
from mi_prun.analysis.boundaries import collect as collect_whole
from mi_prun.analysis.estimators import make_estimator, projection_for
from mi_prun.analysis.mutual_information import check_tokens, data_processing, segment_costs
from mi_prun.analysis.ranks import joined, local_device
from mi_prun.analysis.streamed_model import StreamedModel, collect_streamed
from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.files import check_apart, check_output
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import free_bytes, load_block_model, pick_device, pick_dtype
from mi_prun.model.model_folder import ModelFolder
from mi_prun.settings import SELF, AnalyzeSettings, check_seed
from mi_prun.text.calibration import Calibration, load_mixture, windows_for
from mi_prun.text.weighted_source import check_sources, text_files

MOST_PROJECTED = 16_384  # boundary states times dimensions; with that many squared, float32 and float64, it is 3 GB


def analyze(
    dense: ModelFolder,
    out: Path,
    settings: AnalyzeSettings,
    *,
    force: bool = False,
    load: Callable[[], BlockModel] | None = None,
) -> AnalysisRecord | None:
    """Run the pass and write the analysis folder.

    Under torchrun the ranks share the windows: rank 0 writes, the others return None. load: see `make_analysis`.
    """
    check_output(out, force=force, inputs=text_files(settings.sources))
    check_apart(dense.path, out)
    analysis = make_analysis(dense, settings, load=load)
    if analysis is None:
        return None
    write_analysis(analysis, out, force=force)
    return analysis.record


def make_analysis(
    dense: ModelFolder, settings: AnalyzeSettings, *, load: Callable[[], BlockModel] | None = None
) -> Analysis | None:
    """Run the pass and return the analysis; None on every rank of torchrun but the first.

    load: gives the model on the device and in the dtype of the settings, to a caller that goes on with it.
    """
    check_analyzable(dense, settings)
    identity = dense.identity
    estimator = make_estimator(settings.estimator, settings.noise)
    projection = projection_for(estimator, settings.projection)
    dims = min(projection or dense.hidden_size, dense.hidden_size)
    device = pick_device(local_device(settings.device))
    dtype = pick_dtype(device, settings.dtype)
    model: BlockModel | None = None
    collect: Callable[..., Boundaries]
    if settings.stream_blocks:
        collect = partial(collect_streamed, StreamedModel(dense, device=device, dtype=dtype))
    else:
        model = load() if load is not None else load_block_model(dense, device=device, dtype=dtype)
        collect = partial(collect_whole, model)
    with joined() as ranks:
        calibration = ranks.from_first(lambda: _calibration(dense, model, settings))
        windows = calibration.scoring.tokens
        sample = sample_tokens(windows, estimator.max_tokens, settings.seed)
        check_tokens(int(sample.sum()), dims, estimator)
        own_windows = ranks.share(windows)
        with progress("boundary states", own_windows.numel(), "tokens", shown=ranks.first) as advance:

            def part() -> Boundaries:
                boundaries = collect(
                    own_windows,
                    sample=ranks.share(sample),
                    projection=projection,
                    seed=settings.seed,
                    batch_tokens=settings.batch_tokens or batch_tokens(device, score_bytes(model, windows.shape[1])),
                    advance=advance,
                )
                return boundaries.to(torch.device("cpu")) if ranks.size > 1 else boundaries

            parts = ranks.to_first(part)
    if not ranks.first:
        return None
    boundaries = merged(parts)
    boundaries = boundaries.to(device)
    mi = estimator.of(boundaries, settings.seed)
    processing = data_processing(mi)
    arrays: dict[str, Any] = {
        "segment_cost_nats": segment_costs(mi).numpy(),
        "segment_mi_nats": mi.numpy(),
        "block_cosine": boundaries.cosine.numpy(),
        "pair_angle": pair_angles(boundaries.projections).numpy(),
        "scoring": windows.numpy().astype(np.int32),
        "ranking": calibration.ranking.tokens.numpy().astype(np.int32),
        "held_out": calibration.held_out.tokens.numpy().astype(np.int32),
    }
    record = AnalysisRecord(
        dense=identity,
        calibration=calibration.description,
        estimator=estimator.name,
        estimator_settings=estimator.settings,
        projection=boundaries.projections.shape[-1],
        noise=estimator.noise,
        seed=settings.seed,
        estimated_tokens=boundaries.projections.shape[1],
        seen_tokens=boundaries.tokens,
        skipped_tokens_per_window=SKIP_TOKENS,
        dpi_violations=processing.violations,
        dpi_triples=processing.triples,
        dpi_worst_nats=processing.worst_nats,
        ranks=ranks.size,
        streamed=settings.stream_blocks,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        fingerprint=fingerprint_of(arrays),
    )
    return Analysis(record, **arrays)


def check_analyzable(dense: ModelFolder, settings: AnalyzeSettings) -> None:
    """Refuse what cannot be analyzed before weights are loaded and text is read or sampled."""
    check_settings(settings)
    sampled = SELF in check_sources(settings.sources)
    if dense.num_blocks < 2:
        raise UserError(f"{dense.name} has one block; there is none to drop")
    dense.check_window(settings.window_tokens)
    window = settings.window_tokens or dense.context_tokens()
    asked = windows_for(settings.scoring_tokens, window) * (window - SKIP_TOKENS)
    estimator = make_estimator(settings.estimator, settings.noise)
    projected = projection_for(estimator, settings.projection)
    dims = min(projected or dense.hidden_size, dense.hidden_size)
    check_tokens(min(asked, estimator.max_tokens), dims, estimator)
    if projected is not None and (dense.num_blocks + 1) * dims > MOST_PROJECTED:
        raise UserError(
            f"projection {projected}: {dense.num_blocks + 1} boundary states of {dims} dimensions are "
            f"{(dense.num_blocks + 1) * dims:,}; the covariances of {MOST_PROJECTED:,} at most are held at once: take "
            f"projection {MOST_PROJECTED // (dense.num_blocks + 1)} or less"
        )
    if settings.stream_blocks and sampled:
        raise UserError(
            "--stream-blocks needs --calibration with a text: sampling text from the model takes the whole model"
        )
    known = (dense.tokenizer.bos_token_id, dense.tokenizer.eos_token_id)
    start = next((token for token in known if token is not None), None)
    if sampled and start is not None:  # each sampled text begins with it
        dense.check_tokens(torch.tensor([start]))


def _calibration(dense: ModelFolder, model: BlockModel | None, settings: AnalyzeSettings) -> Calibration:
    scoring, ranking, held_out = settings.part_tokens
    calibration = load_mixture(
        settings.sources,
        dense.tokenizer,
        window_tokens=settings.window_tokens or dense.context_tokens(),
        scoring_tokens=scoring,
        ranking_tokens=ranking,
        held_out_tokens=held_out,
        seed=settings.seed,
        model=None if model is None else model.model,
        scattered=True,
    )
    for part in (calibration.scoring, calibration.ranking, calibration.held_out):
        dense.check_tokens(part.tokens)
    return calibration


def score_bytes(model: BlockModel | None, window_tokens: int) -> int:
    """Return the bytes per token of eager attention: three live copies of all heads' scores. 0 if it is fused."""
    if model is None:
        return 0
    whole = cast("Any", model.model)
    config = whole.config.get_text_config()
    eager = config._attn_implementation == "eager"
    return 3 * config.num_attention_heads * window_tokens * whole.dtype.itemsize if eager else 0


def batch_tokens(device: torch.device, more_bytes: int = 0) -> int:
    """Return the tokens to run at once: 4,096 on CPU.

    On an accelerator a quarter of its free memory is used, at 256 KiB + `more_bytes` for each token.
    """
    if device.type != "cuda":
        return 4_096
    free = free_bytes(device)
    if free < 2**28:
        raise UserError(f"only {free / 2**20:.0f} MiB of {device} are free; free some or use --device cpu")
    return max(2_048, min(65_536, free // 4 // (2**18 + more_bytes)))


def check_settings(settings: AnalyzeSettings) -> None:
    """Refuse settings that no model can be analyzed with."""
    if settings.scoring_tokens < 1:
        raise UserError(f"--tokens must be at least 1, got {settings.scoring_tokens}")
    if settings.window_tokens is not None and settings.window_tokens <= SKIP_TOKENS + 1:
        raise UserError(
            f"--window must be over {SKIP_TOKENS + 1} (the first {SKIP_TOKENS} tokens are left out), "
            f"got {settings.window_tokens}"
        )
    check_seed(settings.seed)
    projection_for(make_estimator(settings.estimator, settings.noise), settings.projection)
