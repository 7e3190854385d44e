"""Pictures from files, as a viewer shows them: the only place that decodes a picture that a user brings.

The right way up (EXIF), on white where they are transparent, 8 bits a channel, RGB; of several frames the first.
"""

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".gif", ".webp"),
    *(".ppm", ".pgm", ".tif", ".tiff", ".avif", ".heic", ".heif"),
)
"""Ends of names that are taken for pictures; one that cannot be decoded is an error, not passed over."""

MOST_PIXELS = 64_000_000
"""Pictures with more pixels than this are refused."""

MOST_LISTED = 20
"""Broken pictures that one message names, at most."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture of each EXIF orientation upright."""

ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def content(file: Path, root: Path) -> bytes:
    """The bytes of a file below ``root``.

    Raises:
        ValueError: it is missing, no plain file, or, its links followed, outside ``root``; the text says which.
    """
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"it is outside the folder {root}")
    try:
        if file.exists() and not file.is_file():  # opening a pipe would wait for ever
            raise ValueError("it is no plain file")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read it: {error.strerror or error}") from error


def decode(data: bytes) -> Image.Image:
    """The picture in these bytes as RGB, as a viewer shows it.

    Raises:
        ValueError: it is no picture, not whole, or has more than :data:`MOST_PIXELS` pixels; the text says why.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of notes beside the pixels, and of a size that the limit below refuses
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS // 10**6} million"
                )
            return as_seen(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"no known kind of picture, or cut off early: it begins with {data[:16]!r}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {MOST_PIXELS // 10**6} million pixels") from error
    except ValueError:
        raise
    except Exception as error:  # decoders raise nearly everything on damaged files
        raise ValueError(f"it is not whole: {error or type(error).__name__}") from error


def as_seen(image: Image.Image) -> Image.Image:
    """An opened picture as RGB: turned as EXIF says, transparent parts on white, deep pixels scaled to 8 bits.

    16-bit pixels are divided by 257. Floating-point pixels are taken to be in [0, 1], or in [0, 255] if one is above 1.

    Raises:
        ValueError: deep pixels that are in none of these ranges.
    """
    image.load()
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged notes beside whole pixels: they say nothing
        turn = None
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        image = _shallow(image)
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if image.mode in ALPHA or "transparency" in image.info or palette.endswith("A"):
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("RGB")


def _shallow(image: Image.Image) -> Image.Image:
    """A picture of one deep channel with 8 bits; the transparent value becomes alpha."""
    pixels = np.asarray(image).astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    whole = image.mode.startswith("I")
    if not (low >= 0 and high <= (65535 if whole else 255)):  # also False for NaN
        raise ValueError(f"its pixels are from {low:g} to {high:g}, which no viewer shows alike")
    scale = 1 / 257 if whole else 255 if high <= 1 else 1
    grey = Image.fromarray((pixels * scale).round().astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    return grey


def array(image: Image.Image) -> Any:
    """An RGB picture as a uint8 array (3, H, W)."""
    return np.asarray(image).transpose(2, 0, 1).copy()


def hidden(path: Path, root: Path) -> bool:
    """Whether a name below ``root`` begins with a dot, at any level: notebooks' and systems' own files, no data."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def listed(problems: Sequence[str]) -> str:
    """Problems, a line each, the first :data:`MOST_LISTED` of them in full."""
    more = len(problems) - MOST_LISTED
    return ";\n  ".join([*problems[:MOST_LISTED], *([f"and {more} more"] if more > 0 else [])])
