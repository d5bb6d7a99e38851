"""Finding class folders by name: a class is what its folder is called, never its place in a list.

A folder that is missing shifts every later class of a list, and folders "0" to "999" sort as texts.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ser_lightning.data.sources.decode import EXTENSIONS
from ser_lightning.data.sources.folder import FolderImages


def find_folders(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Finds folders by name: in root, or up to two levels below it.

    Args:
        root: where to look; ImageNet-C is often kept as `<root>/<group>/<corruption>`.
        names: wanted names.

    Returns:
        Path by name, of those found.

    Raises:
        ValueError: a name is there twice.
    """
    found: dict[str, Path] = {}
    level = [root]
    for _ in range(3):
        for parent in level:
            for name in names:
                if (parent / name).is_dir():
                    if name in found:
                        raise ValueError(
                            f"{name} is there twice, as {found[name]} and {parent / name}; give "
                            "a folder that has it once"
                        )
                    found[name] = parent / name
        if len(found) == len(names):
            break
        level = [child for parent in level for child in _folders(parent, names)]
    return found


def class_files(
    folder: Path,
    class_names: Sequence[str],
    layout: str,
    extensions: tuple[str, ...] = EXTENSIONS,
) -> list[str]:
    """Lists the files in a folder's class folders.

    Args:
        folder: holds class folders, and they hold files.
        class_names: the classes that may be there.
        layout: the expected layout, for messages.
        extensions: of the files, in lower case.

    Returns:
        Paths relative to the folder, sorted.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: it has other class folders.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected\n{layout}")
    classes = sorted(child.name for child in _folders(folder, ()))
    unknown = sorted(set(classes) - set(class_names))
    if unknown:
        some = ", ".join(unknown[:5])
        raise ValueError(
            f"{folder} has the folders {some}, which are no classes of this set; expected\n{layout}"
        )
    paths = []
    for name in classes:
        with os.scandir(folder / name) as entries:
            paths += [
                os.path.join(name, entry.name)
                for entry in entries
                if entry.name.lower().endswith(extensions) and not entry.name.startswith(".")
            ]
    if not paths:
        kinds = " ".join(extensions)
        raise FileNotFoundError(
            f"{folder} has no class folder with a file ({kinds}); expected\n{layout}"
        )
    return sorted(paths)


def class_images(folder: Path, class_names: Sequence[str], layout: str) -> FolderImages:
    """The images in a folder's class folders; arguments and errors are those of `class_files`."""
    return FolderImages(folder, class_files(folder, class_names, layout), tuple(class_names))


def _folders(parent: Path, leave_out: Sequence[str]) -> list[Path]:
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.is_dir() and entry.name not in leave_out and not entry.name.startswith(".")
        ]
