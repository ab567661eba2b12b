"""The amount to drop: a share of blocks, a number, a share of parameters, blocks named by hand, or a limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mi_prun.errors import UserError
from mi_prun.model.identity import ModelIdentity


@dataclass(frozen=True)
class Amount:
    """The amount that the user asked for. Exactly one field is given."""

    ratio: float | None = None
    num_blocks: int | None = None
    param_ratio: float | None = None
    drop: str | None = None
    max_ppl_increase: str | None = None
    max_kl: float | None = None

    def blocks(self, dense: ModelIdentity) -> int | tuple[int, ...] | None:
        """Return the number of blocks to choose, the blocks if they are named, or None if a limit decides."""
        only_one({f"--{name.replace('_', '-')}": value for name, value in vars(self).items()})
        if self.ratio is not None:
            return blocks_for_ratio(self.ratio, dense.num_blocks)
        if self.num_blocks is not None:
            return blocks_for_number(self.num_blocks, dense.num_blocks)
        if self.param_ratio is not None:
            return blocks_for_param_ratio(self.param_ratio, dense)
        return None if self.drop is None else parse_blocks(self.drop, dense.num_blocks)


def nearest(ratio: float, num_blocks: int) -> int:
    """Return ratio * L as a whole number; a half is rounded up."""
    return math.floor(ratio * num_blocks + 0.5)


def blocks_for_ratio(ratio: float, num_blocks: int, option: str = "--ratio") -> int:
    """Return k = round(ratio * L). A ratio that rounds to no block or to all blocks is refused."""
    check_ratio(ratio, option)
    k = nearest(ratio, num_blocks)
    if k == 0 or k == num_blocks:
        what = "no block" if k == 0 else "all blocks"
        raise UserError(
            f"{option} {ratio} of {num_blocks} blocks rounds to {what}; it must leave 1 to {num_blocks - 1} to drop "
            f"({option} {1 / num_blocks:.3g} is one block)"
        )
    return k


def parse_ratios(text: str, num_blocks: int, *, dense: bool = False) -> list[int]:
    """Return the numbers of blocks of `.1,.25,.4`, ascending, each once. dense: let a 0 pass, which is left out."""
    try:
        ratios = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--ratios {text!r} must be numbers between 0 and 1, like .1,.25,.4") from error
    counts = {blocks_for_ratio(ratio, num_blocks, "--ratios") for ratio in ratios if ratio != 0 or not dense}
    if not counts:
        raise UserError(f"--ratios {text!r} names only the dense model; name a share of blocks to drop")
    return sorted(counts)


def blocks_for_number(k: int, num_blocks: int) -> int:
    """Return k, refused if it is no block or all blocks."""
    if not 1 <= k < num_blocks:
        raise UserError(f"--num-blocks must be in 1..{num_blocks - 1} for a model of {num_blocks} blocks, got {k}")
    return k


def blocks_for_param_ratio(ratio: float, dense: ModelIdentity) -> int:
    """Return the largest k for which no choice of k blocks has more than `ratio` of the parameters."""
    check_ratio(ratio, "--param-ratio")
    budget = ratio * dense.num_parameters
    k, dropped = 0, 0
    for size in sorted(dense.block_parameters, reverse=True):
        dropped += size
        if dropped > budget:
            break
        k += 1
    if k == 0:
        least = max(dense.block_parameters) / dense.num_parameters
        raise UserError(f"--param-ratio {ratio} is less than one block ({least:.3g} of the parameters); ask for more")
    return min(k, dense.num_blocks - 1)


def check_ratio(ratio: float, option: str) -> None:
    """Refuse a ratio outside (0, 1)."""
    if not (math.isfinite(ratio) and 0 < ratio < 1):
        raise UserError(f"{option} must be in (0, 1), got {ratio:g}")


def parse_blocks(text: str, num_blocks: int, option: str = "--drop") -> tuple[int, ...]:
    """Return the block indices (0-based) of `5,6,9` or `5-7,9`. Both ends of a range are included."""
    blocks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"{option} {text!r}: {part.strip()!r} is not a block index; write it like 5,6,9 or 5-7")
        wanted = range(int(first), int(last or first) + 1)
        if not wanted:
            raise UserError(f"{option} {text!r}: the range {part.strip()} runs backwards")
        if wanted.stop > num_blocks:
            raise UserError(f"{option} {text!r}: blocks are 0..{num_blocks - 1} (0-based), got {wanted.stop - 1}")
        if twice := blocks & set(wanted):
            raise UserError(f"{option} {text!r} names block {min(twice)} twice")
        blocks |= set(wanted)
    if len(blocks) == num_blocks:
        raise UserError(f"{option} {text!r} names all {num_blocks} blocks; at least one must stay")
    return tuple(sorted(blocks))


def only_one(options: dict[str, object]) -> str:
    """Return the one option that is given. Refuses none, and more than one."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        names = " and ".join(given) if given else "none"
        raise UserError(f"give exactly one of {', '.join(options)}; found {names}")
    return given[0]
