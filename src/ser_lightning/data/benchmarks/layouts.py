"""Finding class folders by name: a class is what its folder is called, never its place in a list.

A folder that is missing shifts every later class of a list, and folders "0" to "999" sort as texts.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ser_lightning.sources.decode import EXTENSIONS
from ser_lightning.sources.listing import Listing, is_system, list_images
from ser_lightning.sources.splits import Images, class_folders


def find_folders(root: Path, names: Sequence[str], layout: str) -> dict[str, Path]:
    """The path of each name that is found in root, or up to two levels below it.

    System folders and those without permission to read are passed over.

    ImageNet-C is often kept as `<root>/<group>/<corruption>`.

    Raises:
        FileNotFoundError: there is no root; the message shows the expected layout.
        ValueError: a name is there twice.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; expected\n{layout}")
    found: dict[str, Path] = {}
    level = [root]
    for _ in range(3):
        for path in (parent / name for parent in level for name in names):
            if os.path.isdir(path):  # False, not an error, below a folder without permission
                if path.name in found:
                    raise ValueError(
                        f"{path.name} is there twice, as {found[path.name]} and {path}; give a "
                        "folder that has it once"
                    )
                found[path.name] = path
        if len(found) == len(names):
            break
        level = [child for parent in level for child in _folders(parent, names)]
    return found


def class_files(
    folder: Path,
    class_names: Sequence[str],
    layout: str,
    extensions: tuple[str, ...] = EXTENSIONS,
) -> Listing:
    """Lists the files in a folder's class folders, and counts what else is there.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: it has folders of other classes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected\n{layout}")
    paths, left_out = list_images(folder, extensions)
    images, found, num_loose = class_folders(Images(folder, paths), least=1)
    if unknown := sorted(set(found) - set(class_names)):
        some = ", ".join(unknown[:5])
        raise ValueError(
            f"{folder} has the folders {some}, which are no classes of this set; expected\n{layout}"
        )
    if not found:
        kinds = " ".join(extensions)
        raise FileNotFoundError(
            f"{folder} has no class folder with a file ({kinds}); expected\n{layout}"
        )
    if num_loose:
        left_out["files beside class folders"] += num_loose
    return Listing(images.paths, left_out)


def _folders(parent: Path, leave_out: Sequence[str]) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if os.path.isdir(entry.path)]
    except PermissionError:
        return []
    return [parent / name for name in names if name not in leave_out and not is_system(name)]
