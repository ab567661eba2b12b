"""analysis/: what one pass over the calibration text found. It serves every ratio and every method.

`analysis.json` says of which model, from which text and how; `analysis.safetensors` holds the arrays, among them the
token windows themselves (scoring, ranking, held out), so that a plan measures on the same text without reading or
sampling it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mi_prun.artefact import Artefact
from mi_prun.errors import UserError
from mi_prun.files import new_folder, sync
from mi_prun.model.model_folder import ModelIdentity
from mi_prun.text.calibration import CalibrationDescription
from mi_prun.version import __version__

JSON_NAME = "analysis.json"
ARRAYS_NAME = "analysis.safetensors"
ARRAYS = ("segment_cost_nats", "segment_mi_nats", "block_cosine", "pair_angle", "scoring", "ranking", "held_out")


class AnalysisRecord(Artefact):
    """dpi_violations: of `dpi_triples` triples of boundaries, those whose estimates break the data processing
    inequality; dpi_worst_nats: by how much the worst one does. No triples: an older release counted by an inequality
    that need not hold.
    estimator_settings: what the estimator has beside projection and noise. ranks: processes that shared the windows.
    streamed: one block was in memory at a time. fingerprint: sha256 of analysis.safetensors; a plan names it.
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
    """The record and its arrays. L blocks, 0-based.

    segment_cost_nats, segment_mi_nats: (L+1, L+1); pair_angle: (L+1, L+1) arccos(cos(h_i, h_j)) / pi;
    block_cosine: (L,) cos(h_i, h_{i+1});
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
        """What the one pass evaluated, in passes of the dense model over the ranking text."""
        return self.scoring.size / self.ranking.size


def arrays_bytes(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    return save({name: np.ascontiguousarray(arrays[name]) for name in ARRAYS})


def write_analysis(record: AnalysisRecord, arrays: bytes, out: Path, *, force: bool = False) -> None:
    """Write the folder whole or not at all."""
    with new_folder(out, force=force) as folder:
        (folder / ARRAYS_NAME).write_bytes(arrays)
        sync(folder / ARRAYS_NAME)
        record.write(folder / JSON_NAME)


def read_analysis(path: Path) -> Analysis:
    """Read an analysis back; refuses one whose arrays are not those it was written with."""
    from hashlib import sha256

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
        found = {name: arrays[name] for name in ARRAYS}
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path / ARRAYS_NAME} cannot be read: {error}") from error
    size = record.dense.num_blocks + 1
    for name in ("segment_cost_nats", "segment_mi_nats", "pair_angle"):
        if found[name].shape != (size, size):
            raise UserError(f"{path / ARRAYS_NAME}: {name} has shape {found[name].shape}, expected {(size, size)}")
    return Analysis(record, **found)
