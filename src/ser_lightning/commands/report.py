"""`ser-fit report RUNS...`: results next to the paper's, as Markdown and HTML."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ser_lightning.reporting.report import write_report


def report(args: Sequence[str]) -> None:
    """Compares the results of runs with the paper's."""
    parser = argparse.ArgumentParser("ser-fit report", description=report.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a file of its results"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("report"), help="where to write")
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="RECORD_OR_RUN",
        help="another network's results: mCE, mFR and mT5D relative to it, as mce_vs_<run>, too",
    )
    options = parser.parse_args(args)
    files = write_report(options.runs, options.output_dir, options.baseline)
    print(files.text)
    print(f"Written: {files.markdown}, {files.html}")
