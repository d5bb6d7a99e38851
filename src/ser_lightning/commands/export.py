"""`ser-fit export`: a run's backbone for other libraries, with preparation and model card."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ser_lightning.commands.stored_images import require_checkpoint, results_folder
from ser_lightning.exporting.card import UNKNOWN
from ser_lightning.exporting.folder import require_free, require_same_backbone, write_export
from ser_lightning.exporting.formats import FORMATS
from ser_lightning.exporting.opened import Opened, open_backbone_file


def export(args: Sequence[str]) -> None:
    """Writes the backbone of a checkpoint as other libraries load it, into a folder of its own.

    With it go how images are prepared, and a model card. The export is loaded again and compared
    before it is put in place.
    """
    parser = argparse.ArgumentParser("ser-fit export", description=export.__doc__)
    parser.add_argument(
        "checkpoint", help="a run's, an export, another project's file of weights, or timm's name"
    )
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
    parser.add_argument("--timm_name", help="architecture of another project's file, where needed")
    parser.add_argument("--num_heads", type=int, help="its attention heads, which no shape tells")
    parser.add_argument(
        "--pretrained", action="store_true", help="let timm fetch the weights of its name"
    )
    parser.add_argument("--license", default=UNKNOWN, help="of the weights, for the model card")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    given = parser.parse_args(args)
    if given.num_heads is not None and given.num_heads < 1:
        parser.error(f"--num_heads {given.num_heads} must be 1 or more; leave it out if unknown")
    if given.output is not None:
        require_free(given.output, given.overwrite)
    opened, run_dir = opened_by(given)
    name = given.format if opened.is_default else f"{given.format}-{opened.branch}"
    folder = given.output or run_dir / "exports" / name
    if given.output is None:
        require_same_backbone(opened, folder)
    write_export(opened, given.format, folder, given.license, given.overwrite)


def opened_by(given: Any) -> tuple[Opened, Path]:
    """The backbone that options name, and the folder of its run."""
    path = Path(given.checkpoint)
    require_checkpoint(path)
    run_dir = results_folder(path, given.pretrained)
    how = {"name": given.timm_name, "num_heads": given.num_heads, "pretrained": given.pretrained}
    return open_backbone_file(given.checkpoint, run_dir, given.branch, **how), run_dir
