"""Pictures in folders of classes: which files are data, and reading all of them or naming all that cannot be read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unteach.data import pictures, tables
from unteach.errors import DataError

__all__ = ["by_class", "classes", "read", "square"]


def classes(folder: Path) -> list[str]:
    """The folders of classes, sorted: as numbers if all are numbers, else as text.

    Raises:
        DataError: the folder cannot be read, or a name is not UTF-8.
    """
    try:
        names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}", found=error.strerror or error) from error
    if strange := [name for name in names if not tables.whole(name)]:
        raise DataError(
            f"names of classes in {folder} are not UTF-8", found=ascii(strange[:5]), fix="rename the folders"
        )
    return sorted(names, key=int) if all(name.isascii() and name.isdecimal() for name in names) else names


def by_class(root: Path, names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """The pictures in the folders of these classes, and their labels.

    Raises:
        DataError: a class has no folder or no pictures; all are named.
    """
    files: list[Path] = []
    y: list[int] = []
    problems = []
    for label, name in enumerate(names):
        folder = root / name
        own = [
            file
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in pictures.ENDINGS and not pictures.hidden(file, folder)
        ]
        if not own:
            problems.append(f"no pictures in {folder}" if folder.is_dir() else f"there is no folder {folder}")
        files += own
        y += [label] * len(own)
    if problems:
        raise DataError(
            f"{root} does not have pictures of every class",
            found=pictures.listed(problems),
            fix="add pictures of these classes, or delete their folders in all parts",
        )
    return files, y


def read(files: Sequence[Path], size: int, root: Path) -> Tensor:
    """Picture files as uint8 (N, 3, size, size); every one that cannot be read is named, in one error."""
    out = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    problems = []
    for i, file in enumerate(files):
        try:
            out[i] = torch.from_numpy(square(pictures.decode(pictures.content(file, root)), size))
        except ValueError as error:
            problems.append(f"{file} ({error})")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(files)} pictures in {root} cannot be used",
            found=pictures.listed(problems),
            fix="get these files again, or delete them",
        )
    return out


def square(image: Image.Image, size: int) -> Any:
    """An RGB picture as a uint8 array (3, size, size), resized if it has another size."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return pictures.array(image)
