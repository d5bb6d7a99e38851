"""`ser-fit look RUN [RUN]`: one page of a running or finished run, or of two side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ser_lightning.commands.compare import comparison_tables, is_measured, run_names
from ser_lightning.files import write_text
from ser_lightning.reporting.groups import unique_folders
from ser_lightning.reporting.look import look_page, read_view

_MOST = 2


def look(args: Sequence[str]) -> None:
    """Writes a page with settings, curves, pictures and results, to open in any browser."""
    parser = argparse.ArgumentParser("ser-fit look", description=look.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="a run folder, or two side by side")
    parser.add_argument("--output", type=Path, help="the page; default: look.html in the first run")
    options = parser.parse_args(args)
    if len(options.runs) > _MOST:
        parser.error(f"{len(options.runs)} runs; give one or two, and `ser-fit compare` for more")
    runs = unique_folders(options.runs)
    views = [read_view(run, name) for run, name in run_names(runs).items()]
    page = options.output or runs[0] / "look.html"
    measured = [run for run in runs if is_measured(run)]  # not so in its first epoch
    write_text(page, look_page(views, comparison_tables(measured) if measured else []))
    print(f"Written: {page}")
