import dataclasses
from pathlib import Path

import pytest
from PIL import Image
from tests.report.pages import make, png

from unteach.errors import ConfigError, DataError
from unteach.report import compose


def colours(path: Path) -> list[tuple[tuple[int, int, int], int]]:
    with Image.open(path) as image:
        found = image.convert("RGB").getcolors(10**6)
    assert found is not None
    return sorted(((colour, count) for count, colour in found), key=lambda pair: -pair[1])


def test_pictures_are_where_they_belong(tmp_path: Path) -> None:
    results = make(tmp_path)
    path = compose(results.grids[0], results.root, tmp_path / "grid.png", cell=40, gap=3)
    counted = dict(colours(path))
    # two red pictures before, one blue after, one cell left empty; enlarged without blur
    assert counted[255, 0, 0] == 2 * 40 * 40 and counted[0, 0, 255] == 40 * 40
    with Image.open(path) as image:
        width, height = image.size
        left, top = width - 2 * 43, height - 2 * 43
        assert image.getpixel((left, top)) == (255, 0, 0) == image.getpixel((left + 43, top + 39))
        assert image.getpixel((left + 39, top + 43)) == (0, 0, 255)
        assert image.getpixel((left + 43 + 20, top + 43 + 20)) == (255, 255, 255)
        assert image.getpixel((left + 40, top)) == (255, 255, 255)


def test_labels_are_drawn_and_long_ones_are_cut(tmp_path: Path) -> None:
    grid = make(tmp_path).grids[0]
    blank = dataclasses.replace(grid, columns=("", ""), rows=("", ""))
    long = dataclasses.replace(grid, columns=("w" * 300, "a few short words that wrap"))
    sizes = {}
    for name, each in (("blank", blank), ("plain", grid), ("long", long)):
        path = compose(each, tmp_path, tmp_path / f"{name}.png")
        with Image.open(path) as image:
            sizes[name] = image.size
    dark = {name: sum(n for c, n in colours(tmp_path / f"{name}.png") if max(c) < 128) for name in sizes}
    assert dark["blank"] == 0 < dark["plain"] < dark["long"]
    assert sizes["plain"][0] == sizes["long"][0] > sizes["blank"][0]
    assert sizes["long"][1] > sizes["plain"][1] > sizes["blank"][1]


def test_one_pixel_cells_end(tmp_path: Path) -> None:
    path = compose(make(tmp_path).grids[0], tmp_path, tmp_path / "tiny.png", cell=1, gap=0)
    assert dict(colours(path))[255, 0, 0] == 2


def test_errors(tmp_path: Path) -> None:
    grid = make(tmp_path).grids[0]
    with pytest.raises(ConfigError, match="cell 0"):
        compose(grid, tmp_path, tmp_path / "grid.png", cell=0)
    with pytest.raises(DataError, match="never saved"):
        compose(grid, None, tmp_path / "grid.png")
    (tmp_path / "images" / "b.png").write_bytes(png((0, 0, 0))[:40])
    with pytest.raises(DataError, match=r"images/b\.png is damaged"):
        compose(grid, tmp_path, tmp_path / "grid.png")
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        compose(grid, tmp_path, tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()
