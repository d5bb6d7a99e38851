"""A report's tables as Markdown and as one HTML page that needs nothing else."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class ReportRow(NamedTuple):
    """A row of text.

    Attributes:
        cells: as many as the header has.
        kind: words for the style of the page: ours, paper, delta, unofficial.
    """

    cells: tuple[str, ...]
    kind: str = ""


class ReportTable(NamedTuple):
    """A table to read; every cell is text already.

    Attributes:
        title: one line.
        caption: what it shows; may be empty.
        header: names of the columns.
        rows: below it.
        notes: texts numbered from 1, as [1] in the cells.
        num_labels: how many columns on the left are words, not numbers.
    """

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...] = ()
    num_labels: int = 2


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #8885; text-align: right; }
th { white-space: nowrap; }
.label { text-align: left; }
tr.delta td { font-weight: 600; border-bottom-width: 2px; }
tr.paper td { opacity: 0.75; }
tr.unofficial td { font-style: italic; }
ol { font-size: 0.9em; }
"""


def to_markdown(title: str, introduction: str, tables: Sequence[ReportTable]) -> str:
    """Writes the tables one below the other.

    Args:
        title: heading of the report.
        introduction: a paragraph on how to read it.
        tables: in the order to show.

    Returns:
        Markdown with a trailing newline.
    """
    parts = [f"# {title}", introduction]
    for table in tables:
        rule = ["---"] * table.num_labels + ["---:"] * (len(table.header) - table.num_labels)
        lines = [table.header, tuple(rule), *(row.cells for row in table.rows)]
        parts.append(f"## {table.title}")
        parts += [table.caption] if table.caption else []
        parts.append("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))
        parts += ["\n".join(f"{i}. {note}" for i, note in enumerate(table.notes, 1))]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(title: str, introduction: str, tables: Sequence[ReportTable]) -> str:
    """Writes the tables as one page without scripts and without anything to load.

    Args:
        title: heading of the report.
        introduction: a paragraph on how to read it.
        tables: in the order to show.

    Returns:
        The page.
    """
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>"
    ]
    for table in tables:
        parts.append(f"<h2>{escape(table.title)}</h2>")
        parts += [f"<p>{escape(table.caption)}</p>"] if table.caption else []
        rows = [_html_row("th", ReportRow(table.header), table.num_labels)]
        rows += [_html_row("td", row, table.num_labels) for row in table.rows]
        parts.append('<div class="wide"><table>\n' + "\n".join(rows) + "\n</table></div>")
        notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
        parts += [f"<ol>{notes}</ol>"] if notes else []
    return "\n".join(parts) + "\n</body>\n</html>\n"


def _cell(text: str) -> str:
    """Text that stays one cell of a Markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _html_row(tag: str, row: ReportRow, num_labels: int) -> str:
    label = ' class="label"'
    texts = [
        f"<{tag}{label if i < num_labels else ''}>{escape(cell)}</{tag}>"
        for i, cell in enumerate(row.cells)
    ]
    return f'<tr class="{row.kind}">' + "".join(texts) + "</tr>"
