"""The report: `report.json` for programs and one self-contained `index.html` for people.

An evaluator describes what to show as sections of blocks; this file knows nothing about what was evaluated.
"""

import base64
import csv
import dataclasses
import html
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from placerec_jax.errors import UserError

FORMAT = 1
MISSING = "–"  # a figure that is not defined
_OPEN_ENTRIES = 8  # longer records, such as the config, are folded on the page


class ForeignFolderError(UserError, FileExistsError):
    """The report's folder holds something else."""


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A pass or fail; the first line is the headline."""

    passed: bool
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Row:
    """Cells of a table row; `kind` is "", ours, baseline, published, or divider (which has one cell)."""

    cells: Sequence[str]
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a header. `groups` are (label, number of columns) pairs printed above the header."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An encoded image with what it shows; `media_type` is image/png or image/jpeg."""

    data: bytes
    media_type: str
    caption: str
    alt: str


Block = Paragraph | Verdict | Table | Picture


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled run of blocks."""

    title: str
    blocks: Sequence[Block]


def write_report(
    directory: str | os.PathLike[str],
    title: str,
    subtitle: str,
    provenance: Mapping[str, Any],
    scores: Mapping[str, Any],
    sections: Sequence[Section],
    notices: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes `directory`/{report.json, index.html} and extra `files`, all or nothing; returns the page.

    An older report is replaced whole. `provenance` says where the figures come from (nested mappings of plain
    values); `notices` are printed first on the page.

    Raises:
        ValueError: scores or provenance hold NaN or infinity; the message says where.
        ForeignFolderError: `directory` holds something else than a report.
    """
    directory = Path(directory)
    record = {"format": FORMAT, "title": title, "notices": list(notices), **provenance, "scores": scores}
    contents = {
        "report.json": _json(record).encode(),
        "index.html": page(title, subtitle, provenance, sections, notices).encode(),
        **(files or {}),
    }
    if directory.exists() and any(directory.iterdir()) and not (directory / "report.json").is_file():
        raise ForeignFolderError(
            f"{directory} exists and is no report (no report.json in it), so it is not replaced; move it away"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fresh.chmod(0o755)
        for name, data in contents.items():
            with open(fresh / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _swap_in(fresh, directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return directory / "index.html"


def _swap_in(fresh: Path, directory: Path) -> None:
    # A directory cannot be renamed onto a full one, so the older report steps aside first.
    if directory.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
        directory.rename(aside / "report")
        fresh.rename(directory)
        shutil.rmtree(aside)
    else:
        fresh.rename(directory)


def _json(record: Mapping[str, Any]) -> str:
    bad = _first_non_finite(record, "report")
    if bad:
        raise ValueError(f"{bad} is not finite; a report holds finite figures only")
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _first_non_finite(value: Any, path: str) -> str | None:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return path
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    else:
        return None
    return next((bad for key, child in children if (bad := _first_non_finite(child, f"{path}.{key}"))), None)


def page(
    title: str,
    subtitle: str,
    provenance: Mapping[str, Any],
    sections: Sequence[Section],
    notices: Sequence[str],
) -> str:
    """The whole page as one string that refers to nothing outside itself."""
    contents = "".join(
        f'<a href="#section-{number}">{html.escape(section.title)}</a>'
        for number, section in enumerate(sections)
    )
    body = "".join(
        f'<section id="section-{number}"><h2>{html.escape(section.title)}</h2>'
        + "".join(_block(block) for block in section.blocks)
        + "</section>"
        for number, section in enumerate(sections)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="subtitle">{html.escape(subtitle)}</p>'
        + "".join(f'<p class="notice">{html.escape(notice)}</p>' for notice in notices)
        + f'<nav>{contents}<a href="#provenance">Provenance</a></nav>{body}'
        '<section id="provenance"><h2>Provenance</h2>'
        + _facts(provenance)
        + "</section></main></body></html>\n"
    )


def text_table(table: Table) -> str:
    """The table for a terminal."""
    rows = [table.header, *(row.cells for row in table.rows if row.kind != "divider")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]

    def shown(cells: Sequence[str]) -> str:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([cells[0].ljust(widths[0]), *aligned[1:]]).rstrip()

    lines = [table.caption]
    if table.groups:
        spans, column = [], 0
        for label, columns in table.groups:
            spans.append(label.rjust(sum(widths[column : column + columns]) + 2 * (columns - 1)))
            column += columns
        lines.append("  ".join(spans).rstrip())
    lines += [shown(table.header), "-" * (sum(widths) + 2 * len(widths) - 2)]
    lines += [row.cells[0] if row.kind == "divider" else shown(row.cells) for row in table.rows]
    return "\n".join(lines)


def csv_file(columns: Mapping[str, Sequence[Any]], floats: str = ".8g") -> bytes:
    """{heading: (N,) values} → the bytes of a CSV file; NumPy's floats are written by the format `floats`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for values in zip(*columns.values(), strict=True):
        writer.writerow([format(v, floats) if isinstance(v, np.floating) else v for v in values])
    return text.getvalue().encode()


def percent(share: float | None) -> str:
    """A share, in percent; MISSING for None."""
    return MISSING if share is None else f"{100 * share:.1f}"


def percent_with_interval(share: float | None, bounds: Sequence[float] | None) -> str:
    """A share with the bounds of its interval, where there is one, in percent."""
    brackets = "" if bounds is None else f" [{percent(bounds[0])}, {percent(bounds[1])}]"
    return percent(share) + brackets


def _facts(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        rows.append(f"<dt>{html.escape(str(name))}</dt><dd>{_fact(value)}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        if len(value) > _OPEN_ENTRIES:
            return f"<details><summary>{len(value)} entries</summary>{_facts(value)}</details>"
        return _facts(value)
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(item, Mapping) for item in value)
        return "".join(map(_fact, value)) if nested else html.escape(", ".join(map(str, value)))
    return html.escape(str(value))


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Verdict):
        first, *rest = (html.escape(line) for line in block.lines)
        outcome = "passed" if block.passed else "failed"
        items = "".join(f"<li>{line}</li>" for line in rest)
        return f'<div class="verdict {outcome}"><strong>{first}</strong><ul>{items}</ul></div>'
    if isinstance(block, Picture):
        data = base64.b64encode(block.data).decode("ascii")
        return (
            f'<figure><img src="data:{block.media_type};base64,{data}" alt="{html.escape(block.alt)}">'
            f"<figcaption>{html.escape(block.caption)}</figcaption></figure>"
        )
    return _table(block)


def _table(table: Table) -> str:
    groups = "".join(f'<th colspan="{columns}">{html.escape(label)}</th>' for label, columns in table.groups)
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = []
    for row in table.rows:
        if row.kind == "divider":
            cells = f'<td colspan="{len(table.header)}">{html.escape(row.cells[0])}</td>'
        else:
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells)
        rows.append(f'<tr class="{row.kind}">{cells}</tr>')
    return (
        f'<div class="table"><table><caption>{html.escape(table.caption)}</caption><thead>'
        + (f'<tr class="groups">{groups}</tr>' if groups else "")
        + f"<tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<p class="note">{html.escape(table.note)}</p>' if table.note else "")
    )


_STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --page: #fbfbf9; --card: #fff; --line: #dfe3e8; --accent: #0b62a4;
  --ours: #eaf3fb; --good: #1a7f45; --bad: #b3261e; --notice: #fff4d6; --notice-line: #e0b541 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #a0a9b6; --page: #14181e; --card: #1b2129; --line: #323b47;
    --accent: #7cb8ec; --ours: #1d3145; --good: #5cc98b; --bad: #f2887f; --notice: #3a3015;
    --notice-line: #8a6d1f }
  figure img { filter: brightness(.92) }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.01em }
.subtitle { color: var(--soft); max-width: none; margin: 6px 0 16px }
h2 { font-size: 1.25rem; margin: 48px 0 12px; padding-top: 16px; border-top: 1px solid var(--line) }
p { max-width: 78ch; margin: 8px 0 }
a { color: var(--accent); text-decoration: none }
a:hover { text-decoration: underline }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 16px 0 }
.notice { background: var(--notice); border-left: 4px solid var(--notice-line); border-radius: 4px;
  padding: 10px 14px; max-width: none }
.verdict { background: var(--card); border: 1px solid var(--line); border-left: 6px solid; border-radius: 6px;
  padding: 12px 16px; margin: 12px 0 }
.verdict ul { margin: 6px 0 0; padding-left: 20px }
.passed { border-left-color: var(--good) }
.failed { border-left-color: var(--bad) }
.passed strong { color: var(--good) }
.failed strong { color: var(--bad) }
.table { overflow-x: auto; margin: 20px 0 4px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; min-width: 60% }
caption { text-align: left; font-weight: 600; padding-bottom: 6px }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 }
th:first-child, td:first-child { text-align: left }
.groups th { text-align: center; border-bottom: none; padding-bottom: 0 }
tr.ours td { background: var(--ours); font-weight: 600 }
tr.published td { color: var(--soft) }
tr.divider td { text-align: left; color: var(--soft); font-size: .85rem; padding-top: 14px }
.note, figcaption { color: var(--soft); font-size: .9rem }
figure { margin: 20px 0 }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px }
figcaption { margin-top: 6px; max-width: 100ch }
dl { display: grid; grid-template-columns: minmax(110px, max-content) 1fr; gap: 3px 18px; margin: 4px 0;
  font-size: .9rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--accent) }
@media print { nav { display: none } figure, table { break-inside: avoid } }
"""
