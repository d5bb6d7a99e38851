"""`ser-fit export`: a run's backbone for other libraries, with preparation and model card."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ser_lightning.exporting.card import UNKNOWN
from ser_lightning.exporting.folder import require_free, write_export
from ser_lightning.exporting.formats import FORMATS
from ser_lightning.exporting.opened import open_backbone_file
from ser_lightning.runtime import run_folder_of


def export(args: Sequence[str]) -> None:
    """Writes the backbone of a checkpoint as other libraries load it, into a folder of its own.

    With it go how images are prepared, and a model card. The export is loaded again and compared
    before it is put in place.
    """
    parser = argparse.ArgumentParser("ser-fit export", description=export.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a run's, or a .safetensors of this package")
    parser.add_argument(
        "--format", required=True, choices=FORMATS, help="what is to load it; docs/export.md"
    )
    parser.add_argument(
        "--output", type=Path, help="folder; default: exports/<format> in the folder of the run"
    )
    parser.add_argument(
        "--branch",
        choices=("online", "momentum"),
        help="whose weights; default: the teacher's of DINO, the student's of all others",
    )
    parser.add_argument("--license", default=UNKNOWN, help="of the weights, for the model card")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    given = parser.parse_args(args)
    if given.output is not None:
        require_free(given.output, given.overwrite)
    run_dir = run_folder_of(given.checkpoint)
    opened = open_backbone_file(given.checkpoint, run_dir, given.branch)
    name = given.format if opened.is_default else f"{given.format}-{opened.branch}"
    folder = given.output or run_dir / "exports" / name
    write_export(opened, given.format, folder, given.license, given.overwrite)
