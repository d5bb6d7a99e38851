"""Writes an export: complete and compared, or not at all."""

import importlib.metadata
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.exporting.card import model_card
from ser_lightning.exporting.formats import FORMATS, difference, require_expressible
from ser_lightning.exporting.opened import Opened, told
from ser_lightning.exporting.weight_folders import write_json
from ser_lightning.files import new_folder, read_mapping

MARK = "export.json"
_LARGEST = 1e-3  # difference of embeddings: other kernels round otherwise, a mistake is larger


def require_free(folder: Path, overwrite: bool) -> None:
    """Refuses a place that is taken: by anything, or with `overwrite` by anything but an export.

    Raises:
        ValueError: says so, and what to do.
    """
    if folder.suffix in (".onnx", ".pt2", ".pt", ".pth", ".ckpt", ".safetensors", ".json"):
        raise ValueError(
            f"--output {folder} names a file, and an export is a folder of several; give "
            f"--output {folder.with_suffix('')}"
        )
    if not folder.exists() and not folder.is_symlink():
        return
    if not (folder / MARK).is_file():
        raise ValueError(f"{folder} exists and is no export; give another --output FOLDER")
    if not overwrite:
        raise ValueError(
            f"{folder} has an export already; replace it with --overwrite, or give another "
            "--output FOLDER"
        )


def require_same_backbone(opened: Opened, folder: Path) -> None:
    """Refuses to replace the export of another backbone of elsewhere that has the same name.

    Raises:
        ValueError: names the remedy.
    """
    if opened.config or not (folder / MARK).is_file():
        return  # a run's folder is its own, and training goes on
    found = read_mapping(folder / MARK).get("checkpoint_sha256")  # None: nobody knows
    if found != opened.sha256:
        raise ValueError(
            f"{folder} has the export of another backbone (SHA-256 {str(found)[:12]}), which "
            "--overwrite would replace; give --output FOLDER"
        )


def write_export(opened: Opened, name: str, folder: Path, licence: str, overwrite: bool) -> None:
    """Writes an export, loads it again, compares it, and puts it in place.

    Raises:
        ValueError: the format cannot express the backbone, or what was written computes something
            else.
    """
    require_free(folder, overwrite)
    require_expressible(opened, name)
    with _placed(folder) as partial:
        FORMATS[name].write(opened, partial)
        found = difference(opened, name, partial)
        checked = _checked(name, found)
        card = model_card(opened, name, folder.name, licence, checked)
        (partial / "README.md").write_text(card, encoding="utf-8")
        write_json(_mark(opened, name), partial / MARK)
    rank_zero_info(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    rank_zero_info(checked)


def _checked(name: str, found: float | None) -> str:
    """How the export was compared, in a sentence.

    Raises:
        ValueError: it computes something else.
    """
    if found is None:
        return f"Not compared with the backbone: {FORMATS[name].package} is not installed."
    if not found <= _LARGEST:
        raise ValueError(
            f"loaded again, the export as {name} differs by {found:.3g} from the backbone, where "
            f"{_LARGEST} is allowed; it was not kept: export as safetensors"
        )
    return (
        "Loaded again and compared with the backbone on 3 random images: the embeddings differ by "
        f"{found:.1e} at most."
    )


def _mark(opened: Opened, name: str) -> dict[str, object]:
    return {
        "format": name,
        "ser_lightning": importlib.metadata.version("ser-lightning"),
        "checkpoint_sha256": opened.sha256,
        "branch": opened.branch,
        "cls_layer": opened.backbone.cls_layer,
        "images": told(opened),
    }


@contextmanager
def _placed(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` on success; on any error it is removed.

    An earlier export is whole at every moment, for an instant under the name `.<name>.old`. A link
    stays, and what it leads to is replaced.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = new_folder(folder.parent, f".{folder.name}.")
    old = folder.parent / f".{folder.name}.old"
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
