"""The analysis: what one pass over the calibration text gave. It serves every ratio and every method.

`analysis.json` names the model, the text and the settings. `analysis.safetensors` holds the arrays. Among them are the
token windows (scoring, ranking, held out), so that a plan measures on the same text without reading it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mi_prun.artefact import Artefact
from mi_prun.errors import UserError
from mi_prun.files import new_folder, sync
from mi_prun.model.identity import ModelIdentity
from mi_prun.text.calibration import CalibrationDescription
from mi_prun.version import __version__

JSON_NAME = "analysis.json"
ARRAYS_NAME = "analysis.safetensors"
WINDOWS = ("scoring", "ranking", "held_out")
ARRAYS = ("segment_cost_nats", "segment_mi_nats", "block_cosine", "pair_angle", *WINDOWS)


class AnalysisRecord(Artefact):
    """What an analysis was made of, and how.

    estimator_settings: the estimator's settings beside projection and noise.
    dpi_violations: how many of `dpi_triples` triples of boundaries break the data processing inequality.
    dpi_worst_nats: by how much the worst one breaks it. With no triples an older release counted, by another rule.
    ranks: processes that shared the windows. streamed: one block was in memory at a time.
    fingerprint: sha256 of analysis.safetensors; a plan names it.
    """

    schema_name: ClassVar[str] = "analysis"

    dense: ModelIdentity
    calibration: CalibrationDescription
    estimator: str
    estimator_settings: dict[str, float] = Field(default_factory=dict)
    projection: int
    noise: float
    seed: int
    estimated_tokens: int
    seen_tokens: int
    skipped_tokens_per_window: int
    dpi_violations: int
    dpi_triples: int = 0
    dpi_worst_nats: float = 0.0
    ranks: int = 1
    streamed: bool = False
    device: str
    dtype: str
    fingerprint: str
    tool_version: str = __version__


@dataclass(frozen=True)
class Analysis:
    """A record and its arrays. There are L blocks, 0-based.

    segment_cost_nats, segment_mi_nats: (L+1, L+1).
    pair_angle: (L+1, L+1) arccos(cos(h_i, h_j)) / pi.
    block_cosine: (L,) cos(h_i, h_{i+1}).
    scoring, ranking, held_out: (windows, window_tokens) token ids.
    """

    record: AnalysisRecord
    segment_cost_nats: NDArray[np.float64]
    segment_mi_nats: NDArray[np.float64]
    block_cosine: NDArray[np.float64]
    pair_angle: NDArray[np.float64]
    scoring: NDArray[np.int32]
    ranking: NDArray[np.int32]
    held_out: NDArray[np.int32]

    @property
    def num_blocks(self) -> int:
        return self.record.dense.num_blocks

    @property
    def passes(self) -> float:
        """The cost of the one pass, in passes of the dense model over the ranking text."""
        return self.scoring.size / self.ranking.size


def arrays_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return `analysis.safetensors` of the ARRAYS; the same bytes for the same arrays."""
    return save({name: np.ascontiguousarray(arrays[name]) for name in ARRAYS})


def fingerprint_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 that `analysis.safetensors` of these arrays has."""
    return sha256(arrays_bytes(arrays)).hexdigest()


def write_analysis(analysis: Analysis, out: Path, *, force: bool = False) -> None:
    """Write the folder whole or not at all."""
    with new_folder(out, force=force) as folder:
        (folder / ARRAYS_NAME).write_bytes(arrays_bytes(vars(analysis)))
        sync(folder / ARRAYS_NAME)
        analysis.record.write(folder / JSON_NAME)


def read_analysis(path: Path) -> Analysis:
    """Read an analysis back. Raises UserError if its arrays are not those it was written with."""
    if not (path / JSON_NAME).is_file():
        raise UserError(f"{path} is not an analysis folder (no {JSON_NAME}); make one with `mi-prun analyze`")
    record = AnalysisRecord.read(path / JSON_NAME)
    try:
        data = (path / ARRAYS_NAME).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path / ARRAYS_NAME}: {error.strerror}") from error
    if sha256(data).hexdigest() != record.fingerprint:
        raise UserError(f"{path / ARRAYS_NAME} does not belong to {JSON_NAME} (its digest differs); analyze again")
    try:
        arrays = load(data)
        known = {name: arrays[name] for name in ARRAYS}
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path / ARRAYS_NAME} cannot be read: {error}") from error
    for name, shape in _shapes(record).items():
        values = known[name]
        if values.shape != shape:
            raise UserError(f"{path / ARRAYS_NAME}: {name} has shape {values.shape}, expected {shape}; analyze again")
        kind = np.int32 if name in WINDOWS else np.float64
        if values.dtype != kind or not np.isfinite(values).all() or (name in WINDOWS and (values < 0).any()):
            raise UserError(
                f"{path / ARRAYS_NAME}: {name} ({values.dtype}) is to be finite numbers of {np.dtype(kind)}"
                f"{', none below 0' if name in WINDOWS else ''}; analyze again"
            )
    return Analysis(record, **known)


def _shapes(record: AnalysisRecord) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of the ARRAYS by the record."""
    blocks, text = record.dense.num_blocks, record.calibration
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(ARRAYS, (blocks + 1, blocks + 1)) | {"block_cosine": (blocks,)}
    tokens = (text.scoring_tokens, text.ranking_tokens, text.held_out_tokens)
    return shapes | {
        name: (count // text.window_tokens, text.window_tokens) for name, count in zip(WINDOWS, tokens, strict=True)
    }
