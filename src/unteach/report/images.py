"""The pictures that results name."""

from pathlib import Path

from unteach.errors import DataError

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
