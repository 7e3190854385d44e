"""A picture grid as one labelled PNG, for a README or a paper."""

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unteach.core import state
from unteach.errors import ConfigError, DataError
from unteach.records.erasure import Grid

PNG = b"\x89PNG\r\n\x1a\n"


def read_png(root: Path | None, path: str, *, what: str) -> bytes:
    """The bytes of a PNG file that results name.

    Args:
        root: folder of the results file.
        path: relative path of the picture.
        what: who names it, for messages.

    Raises:
        DataError: results without a folder; a file that is missing, outside the folder, or no PNG.
    """
    if root is None:
        raise DataError(f"{what} names pictures, but the results were never saved", fix="save them first")
    file = root / path
    if not file.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{what} names a picture outside the folder of its results", found=path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{what}: the picture {file} cannot be read",
            found=error.strerror or error,
            fix="keep the images folder beside the results file, or evaluate again",
        ) from error
    if not data.startswith(PNG):
        raise DataError(f"{what}: {file} is not a PNG picture", found=f"{len(data)} bytes")
    return data


def compose(grid: Grid, root: Path | None, out: Path | str, *, cell: int = 64, gap: int = 4) -> Path:
    """Draw a grid with its row and column labels into one PNG file; small pictures are enlarged without blur.

    Args:
        grid: which pictures.
        root: folder of the results file.
        out: file to write.
        cell: edge of a picture in the drawing, in pixels.
        gap: space between pictures, in pixels.

    Raises:
        ConfigError: a cell of no size.
        DataError: a picture is missing or no PNG.
        CheckpointError: the file cannot be written.
    """
    if cell < 1 or gap < 0:
        raise ConfigError("a picture grid needs cell >= 1 and gap >= 0", found=f"cell {cell}, gap {gap}")
    letters = max(9, cell // 6)
    font = ImageFont.load_default(size=letters)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = gap + max((int(pen.textlength(row, font=font)) for row in grid.rows), default=0) + gap
    labels = [_wrapped(pen, label, font, cell) for label in grid.columns]
    line = letters + 2
    top = gap + int(max((len(lines) for lines in labels), default=0) * line) + gap
    step = cell + gap
    sheet = Image.new("RGB", (left + len(grid.columns) * step, top + len(grid.rows) * step), "white")
    pen = ImageDraw.Draw(sheet)
    for c, lines in enumerate(labels):
        for k, text in enumerate(lines):
            pen.text((left + c * step + cell / 2, gap + k * line), text, "#333", font, anchor="ma")
    for r, row in enumerate(grid.rows):
        pen.text((left - gap, top + r * step + cell / 2), row, "#333", font, anchor="rm")
        for c, path in enumerate(grid.images[r]):
            if path:
                picture = _open(read_png(root, path, what=f"grid '{grid.name}'"), path)
                kernel = Image.Resampling.NEAREST if picture.width <= cell else Image.Resampling.LANCZOS
                sheet.paste(picture.resize((cell, cell), kernel), (left + c * step, top + r * step))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return state.write_bytes(out, buffer.getvalue())


def _open(data: bytes, path: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"the picture {path} is damaged", found=error, fix="evaluate again") from error


def _wrapped(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """Lines no wider than ``width`` pixels where spaces allow; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(joined, font=font) <= width:
            lines[-1] = joined
            continue
        while len(word) > 1 and pen.textlength(word, font=font) > width:
            word = word.rstrip("…")[:-1] + "…"
            if word == "…":
                break
        lines.append(word)
    return lines
