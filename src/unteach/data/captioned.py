"""Folders of captioned images: ``metadata.jsonl`` with ``file_name`` and ``text``, as dataset tools write them."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from unteach.errors import DataError

MOST_PIXELS = 64_000_000
"""Images with more pixels than this are refused."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """Images (N, 3, H, W), float in [0, 1], with a caption and a file name each."""

    name: str
    images: Tensor
    captions: tuple[str, ...]
    files: tuple[str, ...]


def captioned(folder: Path | str, size: tuple[int, int]) -> Captioned:
    """Read a folder of captioned images, cropped to the middle and resized.

    Args:
        folder: holds ``metadata.jsonl``, one ``{"file_name": ..., "text": ...}`` a line, and the images.
        size: height and width in pixels.

    Raises:
        DataError: no metadata, a malformed line, a file outside the folder, missing or not an image: all are listed.
    """
    folder = Path(folder)
    path = folder / "metadata.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"there are no captions in {folder}",
            found=error,
            fix='write metadata.jsonl with one {"file_name": "a.png", "text": "a caption"} a line',
        ) from error
    problems, images, captions, files = [], [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, text = record["file_name"], record["text"]
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError("file_name and text must be text")
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"'{name}' is outside the folder")
            images.append(_read(folder / inside, size))
        except (ValueError, TypeError, KeyError, OSError, RecursionError, UnidentifiedImageError) as error:
            problems.append(f"line {number}: {error}")
            continue
        captions.append(text)
        files.append(name)
    if problems or not images:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DataError(f"{path} cannot be used", found=shown or "no image", fix="correct these lines")
    return Captioned(folder.name, torch.stack(images), tuple(captions), tuple(files))


def _read(path: Path, size: tuple[int, int]) -> Tensor:
    height, width = size
    with Image.open(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{path.name} has {image.width} x {image.height} pixels")
        picture = image.convert("RGB")
    scale = max(width / picture.width, height / picture.height)
    wide = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    picture = picture.resize(wide, Image.Resampling.LANCZOS)
    left, top = (wide[0] - width) // 2, (wide[1] - height) // 2
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
