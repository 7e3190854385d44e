"""Build the pack of handwritten digits, 8 x 8 pixels, from scikit-learn's copy of the UCI data set.

    python tools/build_digits.py [--out src/unteach/data/packs]

Writes ``digits8.png`` (all 1797 scans in one sheet, row by row, grey values 0..16 spread over 0..255) and
``digits8.json`` (labels in the same order, source, licence, digest of sheet and labels).
Needs ``pip install 'unteach[build]'``.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import sklearn
from PIL import Image
from sklearn.datasets import load_digits

COLUMNS = 60
SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/unteach/data/packs"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    data = load_digits()
    scans = np.rint(data.images * 255 / 16).astype(np.uint8)
    rows = -(-len(scans) // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, SIZE, SIZE), np.uint8)
    sheet[: len(scans)] = scans
    sheet = sheet.reshape(rows, COLUMNS, SIZE, SIZE).swapaxes(1, 2).reshape(rows * SIZE, COLUMNS * SIZE)
    picture = out / "digits8.png"
    Image.fromarray(sheet).save(picture, optimize=True)
    labels = "".join(map(str, data.target))
    index = {
        "format": "unteach-digits", "version": 1, "size": SIZE, "columns": COLUMNS,
        "sha256": hashlib.sha256(picture.read_bytes() + labels.encode()).hexdigest(),
        "source": {
            "package": "scikit-learn", "version": sklearn.__version__, "author": "E. Alpaydin, C. Kaynak",
            "url": "https://doi.org/10.24432/C50P49", "licence": "CC-BY-4.0",
        },
        "labels": labels,
    }  # fmt: skip
    (out / "digits8.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for name in ("digits8.png", "digits8.json"):
        print(f"{(out / name).stat().st_size / 1024:9.0f} KiB  {name}")


if __name__ == "__main__":
    main()
