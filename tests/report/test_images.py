from pathlib import Path

import pytest
from tests.report.pages import make, png

from unteach.errors import DataError
from unteach.report.images import read_png


def test_errors(tmp_path: Path) -> None:
    results = make(tmp_path)
    assert read_png(results.root, "images/b.png", what="grid 'x'").startswith(b"\x89PNG")
    with pytest.raises(DataError, match="never saved"):
        read_png(None, "images/b.png", what="grid 'x'")
    (tmp_path / "images" / "b.png").write_bytes(png((0, 0, 0))[4:40])
    with pytest.raises(DataError, match=r"grid 'x': .*images/b\.png is not a PNG picture"):
        read_png(tmp_path, "images/b.png", what="grid 'x'")
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_png(tmp_path, "images/b.png", what="grid 'x'")
