"""Handwritten digits, 8 x 8 pixels (UCI, by E. Alpaydin and C. Kaynak; CC BY 4.0). They ship with the package."""

import functools
import hashlib
import io
import json
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unteach.core import seeds
from unteach.data.files import Labelled
from unteach.errors import DataError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_SHARE = 0.2


@functools.cache
def scans() -> tuple[Tensor, Tensor]:
    """All 1797 scans, uint8 (N, 1, 8, 8) in 0..255 in steps of about 16, and their labels, int64 (N,).

    Raises:
        DataError: the packed data is missing or damaged.
    """
    return read(resources.files("unteach.data") / "packs")


def read(folder: Traversable) -> tuple[Tensor, Tensor]:
    """The scans and labels packed in this folder; see :func:`scans`."""
    try:
        index = json.loads((folder / "digits8.json").read_text(encoding="utf-8"))
        data = (folder / "digits8.png").read_bytes()
    except (OSError, ValueError) as error:
        raise DataError("the packed digits are missing or damaged", found=error, fix="reinstall unteach") from error
    if not isinstance(index, dict) or (index.get("format"), index.get("version")) != ("unteach-digits", 1):
        raise DataError("digits8.json is not the index of the packed digits", fix="reinstall unteach")
    labels = str(index.get("labels"))
    if hashlib.sha256(data + labels.encode()).hexdigest() != index.get("sha256"):
        raise DataError(
            "the packed digits are damaged: the digest of sheet and labels is not the one in digits8.json",
            found=f"{len(data)} bytes, {len(labels)} labels",
            fix="reinstall unteach",
        )
    size, columns = index["size"], index["columns"]
    sheet = torch.from_numpy(np.asarray(Image.open(io.BytesIO(data))).copy())
    tiles = sheet.view(-1, size, columns, size).permute(0, 2, 1, 3).reshape(-1, 1, size, size)
    return tiles[: len(labels)], torch.tensor([int(label) for label in labels])


@functools.cache
def digits() -> Labelled:
    """The digits in a fixed split: of every class a fifth, drawn once with seed 0, is test data."""
    x, y = scans()
    test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(len(NAMES)):
        rows = (y == label).nonzero().flatten()
        drawn = seeds.permutation(len(rows), 0, "digits test split", label)[: round(TEST_SHARE * len(rows))]
        test[rows[drawn]] = True
    return Labelled(x[~test], y[~test], x[test], y[test], NAMES)
