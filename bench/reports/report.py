"""`mi-prun-bench report`: turn records into one self-contained HTML page, Markdown and CSV.

Runs are not mixed: a table and its ratios come from one run; the newest run stands first.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from bench.records.flat_rows import FlatRow, rows_of
from bench.records.results import Results, Run, read_results
from bench.reports.report_section import Section, sections
from mi_prun.files import one_line_os_errors, write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_report(results: Path, out: Path) -> list[Path]:
    """Read a results folder and write its report; see `write_pages`."""
    return write_pages(read_results(results), out)


def write_pages(results: Results, out: Path) -> list[Path]:
    """Write report.html, report.md and report.csv into the folder `out`; return their paths."""
    shown = sections(results)
    written = {
        "report.html": html(shown),
        "report.md": markdown(shown),
        "report.csv": comma_separated(results.runs),
    }
    with one_line_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            write_text(out / name, text)
    return [out / name for name in written]


def markdown(shown: Sequence[Section]) -> str:
    """Return the report as Markdown."""
    parts = ["# Dense against pruned", ""]
    for section in shown:
        parts += [f"## {_text(section.title)}, {section.time}", "", f"**{_text(section.headline)}**", ""]
        parts += [line for note in section.notes for line in (_text(note), "")]
        for table in section.tables:
            parts += table.markdown()
        dropped = [arm for arm in section.arms if arm.blocks.dropped]
        if dropped:
            parts += ["Dropped blocks (0-based):", ""]
            parts += [f"- {_text(arm.label)}: {', '.join(map(str, arm.blocks.dropped))}" for arm in dropped]
            parts.append("")
        if section.prompts:
            parts += ["### The same prompts, continued", ""]
        for prompt in section.prompts:
            parts += [_quoted(prompt.prompt), ""]
            parts += [line for label, text in prompt.answers for line in (f"{_text(label)}:", "", _quoted(text), "")]
        parts += [*(f"- {name}: {_text(text)}" for name, text in section.footers), ""]
    return "\n".join(parts)


def _text(text: str) -> str:
    """Escape plain words for Markdown: neither tags nor emphasis, on one line."""
    return re.sub(r"([<*_`\[\]#])", r"\\\1", " ".join(text.split()))


def _quoted(text: str) -> str:
    """Quote a text as it is, in a fence that it cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def comma_separated(runs: Sequence[Run]) -> str:
    """Return CSV: every model under every load, every percentile. Tasks are in tasks.jsonl."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(FlatRow.model_fields), lineterminator="\n")
    writer.writeheader()
    for run in runs:
        for row in rows_of(run):
            writer.writerow({**row.model_dump(), "dropped": " ".join(map(str, row.dropped))})
    return out.getvalue()


def html(shown: Sequence[Section]) -> str:
    """Return the report as one HTML page that needs no network."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(sections=shown)
