"""The proof that the blocks of a family that no rule names can be dropped, as artefacts keep it."""

from __future__ import annotations

from mi_prun.artefact import Record


class Proof(Record):
    """What was tried on a tiny random model of the same class, with the same fields about single blocks.

    Each set of blocks was dropped by the checkpoint writer, and the folder was read back by stock transformers. It was
    compared with the dense model whose blocks are bypassed.

    model_class: transformers' class. num_blocks: of the tiny model, those of the real one.
    tiny_fields: the config fields that the tiny model has otherwise.
    tokens: the shape (texts, tokens) of what both models read.
    dropped: the sets of blocks (0-based).
    largest_difference: of any log-probability.
    """

    model_class: str
    transformers_version: str
    num_blocks: int
    num_parameters: int
    tiny_fields: dict[str, int | str | None]
    tokens: tuple[int, int]
    dropped: tuple[tuple[int, ...], ...]
    largest_difference: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"no rule names this family; proved on a tiny {self.model_class} of {self.num_blocks} blocks (transformers "
            f"{self.transformers_version}): {len(self.dropped)} sets of blocks dropped, largest difference of a "
            f"log-probability {self.largest_difference:.2g}"
        )
