"""`ser-fit latent CKPT [CKPT ...]`: the latent space of checkpoints side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ser_lightning.commands.evaluate import evaluate
from ser_lightning.commands.stored_images import is_pretrained, require_checkpoint, results_folder
from ser_lightning.reporting.groups import told_apart, unique_folders
from ser_lightning.reporting.latent_figure import LatentPanel, latent_figures
from ser_lightning.results.points import read_points
from ser_lightning.results.record import read_record
from ser_lightning.runtime.configuration import options, packaged


def latent(args: Sequence[str]) -> None:
    """Draws the same images in the latent space of each checkpoint, with the purity of classes.

    Other options are those of `ser-fit evaluate --config configs/eval/latent.yaml`, for all of
    them, such as --images FOLDER or --model.num_classes 10. Each run gets its record, too.
    """
    parser = argparse.ArgumentParser(
        "ser-fit latent", description=latent.__doc__, allow_abbrev=False
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="files to evaluate")
    parser.add_argument("--output", type=Path, default=Path("latent.png"), help="the picture")
    parser.add_argument("--images", help="folder of the images, for all of them")
    known, others = parser.parse_known_args(args)
    others += [] if known.images is None else ["--images", known.images]
    if options(others, "--run_dir"):
        parser.error("--run_dir is one folder for all; results go to each checkpoint's run")
    for checkpoint in known.checkpoints:
        require_checkpoint(checkpoint)
    # one process: launchers of several run the whole command line again
    stage = ["--config", packaged("configs/eval/latent.yaml"), "--trainer.devices", "1", *others]
    panels, identities = [], {}
    names = _names(known.checkpoints, is_pretrained(others))
    for checkpoint, name in names.items():
        (path,) = evaluate([*stage, "--checkpoint", str(checkpoint)])
        record = read_record(path)
        panels.append(LatentPanel(name, read_points(path), record.metrics))
        identities[record.data_sha256, record.seed] = name
    if len(identities) > 1:
        raise ValueError(
            f"{' and '.join(identities.values())} were measured on other images; give --images "
            "FOLDER, the same for all"
        )
    latent_figures(known.output, panels, f"Latent space, {record.dataset}")
    print(f"Written: {known.output}")


def _names(checkpoints: Sequence[Path], pretrained: bool) -> dict[Path, str]:
    """What checkpoints are called: by run or backbone, with the file, or by path; all unlike."""
    unique = unique_folders(checkpoints)
    runs = [results_folder(checkpoint, pretrained).name for checkpoint in unique]
    files = [f"{run}/{path.stem}" for run, path in zip(runs, unique, strict=True)]
    return told_apart(unique, runs, files)
