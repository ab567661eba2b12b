"""The block map: kept and dropped blocks drawn for a terminal, and as SVG for the model card. Indices are 0-based."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from xml.sax.saxutils import escape

BLOCKS_PER_ROW = 50
GROUP = 10
COLOURS = ("#3b6fb6", "#c77d2e", "#4f9a5b", "#8a5fb0", "#b0485a", "#5b8f9c")
CELL = 18
TALL_CELL, GAP, LABEL_WIDTH, LINE_WIDTH = 22, 3, 132, 700  # of a line for each model


def text_map(num_blocks: int, dropped: Collection[int], kinds: Sequence[str] = ()) -> str:
    """Draw one character a block: `#` kept, `.` dropped. With several kinds a letter, in upper case if kept."""
    gone = set(dropped)
    letters = _letters(kinds)
    several = len(letters) > 1

    def mark(block: int) -> str:
        if not several:
            return "." if block in gone else "#"
        letter = letters[kinds[block]]
        return letter.lower() if block in gone else letter.upper()

    rows = []
    for first in range(0, num_blocks, BLOCKS_PER_ROW):
        marks = [mark(block) for block in range(first, min(num_blocks, first + BLOCKS_PER_ROW))]
        groups = ["".join(marks[start : start + GROUP]) for start in range(0, len(marks), GROUP)]
        rows.append(f"{first:>5}  {' '.join(groups)}")
    if several:
        legend = ", ".join(f"{letter.upper()} {kind}" for kind, letter in letters.items())
        rows.append(f"       {legend}; upper case kept, lower case dropped")
    else:
        rows.append("       # kept, . dropped")
    return "\n".join(rows)


def svg_map(num_blocks: int, dropped: Collection[int], kinds: Sequence[str] = ()) -> str:
    """Draw one cell a block as SVG: filled if kept, a crossed outline if dropped. The colour is the kind."""
    gone = set(dropped)
    names = list(_letters(kinds)) or ["block"]
    rows = -(-num_blocks // BLOCKS_PER_ROW)
    columns = min(num_blocks, BLOCKS_PER_ROW)
    width = max(columns * CELL + 60, 420)
    height = rows * (CELL + 16) + 20 * (len(names) + 1) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="10">',
        f"<title>{num_blocks - len(gone)} of {num_blocks} blocks kept; dropped (0-based): "
        f"{escape(', '.join(map(str, sorted(gone))) or 'none')}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for block in range(num_blocks):
        row, column = divmod(block, BLOCKS_PER_ROW)
        x, y = 40 + column * CELL, 10 + row * (CELL + 16)
        if column == 0:
            parts.append(f'<text x="34" y="{y + 13}" text-anchor="end" fill="#555555">{block}</text>')
        colour = COLOURS[names.index(kinds[block]) % len(COLOURS)] if kinds else COLOURS[0]
        what = "dropped" if block in gone else "kept"
        kind = f", {escape(kinds[block])}" if kinds else ""
        parts.append(f"<g><title>block {block}: {what}{kind}</title>{_cell(x, y, colour, block in gone)}</g>")
    y = 10 + rows * (CELL + 16) + 4
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_cell(40, y, colour, False))
        parts.append(f'<text x="62" y="{y + 12}" fill="#222222">{escape(name)} (kept)</text>')
        y += 20
    parts.append(_cell(40, y, "#777777", True))
    parts.append(f'<text x="62" y="{y + 12}" fill="#222222">dropped</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def svg_lines(num_blocks: int, models: Sequence[tuple[str, Collection[int]]], *, kept: str, dropped: str) -> str:
    """Draw a line for each model and a cell for each block, in a page's own text colour.

    models: a label and the dropped blocks of each. kept, dropped: the colours. Deep models get narrower cells, down to
    what a cross can be seen in.
    """
    cell = max(8, min(TALL_CELL, (LINE_WIDTH - LABEL_WIDTH) // num_blocks - GAP))
    step, line_height = cell + GAP, TALL_CELL + GAP
    width, height = LABEL_WIDTH + num_blocks * step, (len(models) + 1) * line_height
    parts = [
        f'<svg role="img" aria-label="Which blocks each model drops" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px" xmlns="http://www.w3.org/2000/svg" font-size="12" fill="currentColor">'
    ]
    for line, (label, gone) in enumerate(models):
        y = line * line_height
        parts.append(f'<text x="0" y="{y + 16}">{escape(label)}</text>')
        for block in range(num_blocks):
            drawn = _cell(
                LABEL_WIDTH + block * step, y, dropped if block in gone else kept, block in gone, cell, TALL_CELL
            )
            parts.append(f"<g><title>block {block}: {'dropped' if block in gone else 'kept'}</title>{drawn}</g>")
    y = len(models) * line_height + 13
    for block in range(0, num_blocks, 1 if cell >= 18 else 5):
        x = LABEL_WIDTH + block * step + cell / 2
        parts.append(f'<text x="{x:g}" y="{y}" text-anchor="middle" font-size="11">{block}</text>')
    return "".join([*parts, "</svg>"])


def _cell(x: int, y: int, colour: str, gone: bool, width: int = CELL - 3, height: int = CELL - 3) -> str:
    rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="2"'
    if not gone:
        return f'{rect} fill="{colour}"/>'
    cross = 0.6 * width
    left, top = x + (width - cross) / 2, y + (height - cross) / 2
    path = f"M{left:g} {top:g}l{cross:g} {cross:g}m0 -{cross:g}l-{cross:g} {cross:g}"
    return f'{rect} fill="none" stroke="{colour}"/><path d="{path}" stroke="{colour}"/>'


def _letters(kinds: Sequence[str]) -> dict[str, str]:
    """Return a letter for each kind, in the order they come: the first of its own letters that is free."""
    letters: dict[str, str] = {}
    for kind in kinds:
        if kind in letters:
            continue
        free = [letter for letter in (*kind.upper(), *"ABCDEFGHIJKLMNOPQRSTUVWXYZ") if letter.isascii()]
        letters[kind] = next((c for c in free if c.isalpha() and c not in letters.values()), "?")
    return letters
