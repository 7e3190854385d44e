"""Folders of captioned images: ``metadata.jsonl`` with ``file_name`` and ``text``, as dataset tools write them."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unteach.data import pictures, tables
from unteach.errors import DataError


@dataclass(frozen=True, eq=False)
class Captioned:
    """Images (N, 3, H, W), float in [0, 1], with a caption and a file name each."""

    name: str
    images: Tensor
    captions: tuple[str, ...]
    files: tuple[str, ...]


def captioned(folder: Path | str, size: tuple[int, int]) -> Captioned:
    """Read a folder of captioned images as a viewer shows them, cropped to the middle and resized.

    Args:
        folder: holds ``metadata.jsonl``, one ``{"file_name": ..., "text": ...}`` a line, and the images. The captions
            may be called ``caption`` or ``prompt`` instead; other columns are not read.
        size: height and width in pixels.

    Raises:
        DataError: no metadata, a malformed line, a file outside the folder (links followed), missing or not an image:
            all in one message.
    """
    folder = Path(folder)
    path = folder / "metadata.jsonl"
    fix = 'write metadata.jsonl with one {"file_name": "a.png", "text": "a caption"} a line'
    try:
        text = tables.read(path, "the captions file", fix)
    except DataError as error:
        raise DataError(
            f"there are no captions in {folder}", found=f"{error.problem}: {error.found}", fix=error.fix
        ) from error
    problems, images, captions, files = [], [], [], []
    for number, record in tables.json_lines(text):
        try:
            name, caption = _fields(record)
            images.append(_read(folder, name, size))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        captions.append(caption)
        files.append(name)
    if problems or not images:
        raise DataError(
            f"{path} cannot be used", found=pictures.listed(problems) or "no image", fix="correct these lines"
        )
    return Captioned(folder.name, torch.stack(images), tuple(captions), tuple(files))


def _fields(record: dict[str, Any] | str) -> tuple[str, str]:
    """File name and caption of one line.

    Raises:
        ValueError: says what is wrong.
    """
    if isinstance(record, str):
        raise ValueError(record)
    column = tables.caption_column(list(record))
    if "file_name" not in record:
        raise ValueError(f"no 'file_name' (columns: {', '.join(map(repr, list(record)[:12]))})")
    name, caption = record["file_name"], record[column]
    if not isinstance(name, str) or not isinstance(caption, str):
        raise ValueError(f"file_name and {column} must be text")
    if not tables.whole(name + caption):
        raise ValueError(f"file_name or {column} holds half a character")
    return name, caption


def _read(folder: Path, name: str, size: tuple[int, int]) -> Tensor:
    height, width = size
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"'{name}' is outside the folder")
    try:
        picture = pictures.decode(pictures.content(folder / name, folder))
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from error
    scale = max(width / picture.width, height / picture.height)
    wide = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    if wide[0] * wide[1] > pictures.MOST_PIXELS:
        raise ValueError(f"'{name}' is too narrow: {picture.width} x {picture.height} pixels")
    picture = picture.resize(wide, Image.Resampling.LANCZOS)
    left, top = (wide[0] - width) // 2, (wide[1] - height) // 2
    return torch.from_numpy(pictures.array(picture.crop((left, top, left + width, top + height)))).float() / 255
