"""Tables as text for a terminal, as Markdown, and as one HTML page that needs nothing else."""

import base64
import textwrap
from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple


class ReportRow(NamedTuple):
    """A row of text, with as many cells as the header has."""

    cells: tuple[str, ...]
    kind: str = ""
    """Words for the style of the page: ours, paper, delta, unofficial."""


class ReportTable(NamedTuple):
    """A table to read; every cell is text already.

    Notes are numbered from 1, as [1] in the cells; the labels are the columns on the left that are
    words, not numbers.
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
ol, figcaption { font-size: 0.9em; }
figure { margin: 0.5rem 0; padding: 0.3rem; background: white; color: black; }
figure img, figure svg { max-width: 100%; height: auto; }
.long figure { overflow-x: auto; }
.long img { min-width: 60rem; }
.runs, .panels { display: grid; gap: 1rem; }
.panels { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 0.3rem; }
.runs { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
"""


PNG = b"\x89PNG"  # what such a file begins with

_WIDTH = 80  # of a terminal
_HEADING_WIDTH, _LABEL_WIDTH = 14, 28  # at which words are folded in a table wider than that
_GAP = "  "


def to_text(title: str, introduction: str, tables: Sequence[ReportTable]) -> str:
    """Writes the tables one below the other for a terminal; wide ones go on below themselves."""
    parts = [f"{title}\n{'=' * len(title)}", _fold(introduction)]
    for table in tables:
        parts.append(f"{table.title}\n{'-' * len(table.title)}")
        parts.append(_fold(table.caption))
        rows = [table.header, *(row.cells for row in table.rows)]
        parts.append("\n".join(text_lines(rows, table.num_labels)))
        parts.append("\n".join(_fold(f"[{i}] {note}") for i, note in enumerate(table.notes, 1)))
    return "\n\n".join(filter(None, parts)) + "\n"


def text_lines(rows: Sequence[Sequence[str]], num_labels: int) -> list[str]:
    """Aligned lines of a table, with columns that are left over in further blocks below.

    Of cells, those of the header first; the columns of labels on the left are in every block.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    if _total(widths) > _WIDTH:
        for i, (head, *cells) in list(enumerate(columns))[num_labels:]:
            longest = max(len(text) for text in [*cells, *head.split(), ""])
            widths[i] = max(longest, min(len(head), _HEADING_WIDTH))
    if _total(widths) > _WIDTH:
        widths[:num_labels] = [min(width, _LABEL_WIDTH) for width in widths[:num_labels]]
    labels, blocks = list(range(num_labels)), list[list[int]]()
    for i in range(num_labels, len(columns)):
        wanted = [*(blocks[-1] if blocks else labels), i]
        if blocks and _total([widths[j] for j in wanted]) <= _WIDTH:
            blocks[-1] = wanted
        else:
            blocks.append([*labels, i])
    lines = []
    for block in blocks or [labels]:
        head, *body = (_text_row(row, block, widths, num_labels) for row in rows)
        rule = "-" * max(map(len, [*head, *(line for row in body for line in row)]))
        lines += ["", *head, rule, *(line for row in body for line in row)]
    return lines[1:]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _text_row(
    cells: Sequence[str], block: Sequence[int], widths: Sequence[int], num_labels: int
) -> list[str]:
    """The lines of one row, folded where a cell is longer than its column is wide."""
    folded = [textwrap.wrap(cells[i], max(widths[i], 1), break_on_hyphens=False) for i in block]
    return [
        _GAP.join(
            f"{text:{'<' if i < num_labels else '>'}{widths[i]}}"
            for i, text in zip(block, texts, strict=True)
        ).rstrip()
        for texts in zip_longest(*folded, fillvalue="")
    ]


def _fold(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def to_markdown(title: str, introduction: str, tables: Sequence[ReportTable]) -> str:
    """Writes the same as Markdown."""
    parts = [f"# {title}", introduction, *map(markdown_part, tables)]
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown_part(table: ReportTable) -> str:
    """A table in Markdown below its title, with caption and notes."""
    rows = [table.header, *(row.cells for row in table.rows)]
    notes = "\n".join(_words(f"{i}. {note}") for i, note in enumerate(table.notes, 1))
    parts = [_words(f"## {table.title}"), _words(table.caption)]
    return "\n\n".join(filter(None, [*parts, markdown_table(rows, table.num_labels), notes]))


def markdown_table(rows: Sequence[Sequence[str]], num_labels: int) -> str:
    """A table alone in Markdown; arguments as `text_lines`'s."""
    head, *body = rows
    rule = ["---"] * num_labels + ["---:"] * (len(head) - num_labels)
    lines = ["| " + " | ".join(map(_cell, line)) + " |" for line in (head, rule, *body)]
    return "\n".join(lines)


def to_html(
    title: str, introduction: str, tables: Sequence[ReportTable], pictures: Sequence[Path] = ()
) -> str:
    """Writes the same as one page without scripts and without anything to load.

    PNGs stand below the tables, each with its run and name.
    """
    parts = [html_table(table) for table in tables]
    runs = [path.resolve().parents[1].name for path in pictures]
    parts += [html_picture(p, f"{run}: {p.stem}") for run, p in zip(runs, pictures, strict=True)]
    return html_page(title, introduction, "\n".join(parts))


def html_page(title: str, introduction: str, body: str) -> str:
    """A page around its content."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n{body}\n</body>\n</html>\n"
    )


def html_table(table: ReportTable) -> str:
    """A table with its heading and notes; a wide one scrolls by itself."""
    rows = [_html_row("th", ReportRow(table.header), table.num_labels)]
    rows += [_html_row("td", row, table.num_labels) for row in table.rows]
    parts = [f"<h2>{escape(table.title)}</h2>"] if table.title else []
    parts += [f"<p>{escape(table.caption)}</p>"] if table.caption else []
    parts.append('<div class="wide"><table>\n' + "\n".join(rows) + "\n</table></div>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    parts += [f"<ol>{notes}</ol>"] if notes else []
    return "\n".join(parts)


def html_picture(path: Path, caption: str) -> str:
    """A PNG within the page."""
    content, words = path.read_bytes(), escape(caption)
    data = base64.b64encode(content).decode()
    # by this name may stand a link to any file, which the page must not show to others
    is_png = content.startswith(PNG)
    image = f'<img src="data:image/png;base64,{data}" alt="{words}">' if is_png else "(no picture)"
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def _cell(text: str) -> str:
    """Text that stays one cell of a Markdown table."""
    return _words(text).replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _words(text: str) -> str:
    """Text in Markdown that no viewer takes for HTML."""
    return text.replace("<", "&lt;")


def _html_row(tag: str, row: ReportRow, num_labels: int) -> str:
    label = ' class="label"'
    cells = (
        f"<{tag}{label if i < num_labels else ''}>{escape(cell)}</{tag}>"
        for i, cell in enumerate(row.cells)
    )
    return f'<tr class="{row.kind}">' + "".join(cells) + "</tr>"
