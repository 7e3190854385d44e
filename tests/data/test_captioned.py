"""Folders of captioned pictures: what is there is read as it is, and everything that is wrong is listed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unteach.data import pictures as module
from unteach.data.captioned import captioned
from unteach.errors import DataError


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folder_of(path: Path, lines: list[object]) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (path / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")
    return path


def noise(seed: int, height: int = 6, width: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_pictures_of_the_right_size_are_read_bit_for_bit_in_the_order_of_the_file(tmp_path: Path) -> None:
    pixels = [noise(k) for k in range(3)]
    for k in range(3):
        picture(tmp_path / "set" / "inside" / f"{k}.png", pixels[k])
    order = (2, 0, 1)
    lines = [{"file_name": f"inside/{k}.png", "text": f"a düne {k}", "more": 1} for k in order]
    found = captioned(folder_of(tmp_path / "set", [lines[0], "", *lines[1:]]), (6, 6))
    assert found.name == "set" and found.files == tuple(f"inside/{k}.png" for k in order)
    assert found.captions == ("a düne 2", "a düne 0", "a düne 1")
    expected = torch.stack([torch.from_numpy(pixels[k]).permute(2, 0, 1) for k in order]).float() / 255
    assert torch.equal(found.images, expected)


def test_other_shapes_are_cropped_to_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 255  # the middle third is white, all else black
    picture(tmp_path / "wide.png", wide)
    picture(tmp_path / "high.png", wide.transpose(1, 0, 2).copy())
    lines: list[object] = [{"file_name": f"{name}.png", "text": name} for name in ("wide", "high")]
    found = captioned(folder_of(tmp_path, lines), (4, 4))
    assert found.images.shape == (2, 3, 4, 4) and bool((found.images == 1).all())
    larger = captioned(tmp_path, (8, 16)).images
    assert larger.shape == (2, 3, 8, 16) and float(larger.min()) >= 0 and float(larger.max()) <= 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA"])
def test_every_kind_of_picture_becomes_rgb(mode: str, tmp_path: Path) -> None:
    Image.fromarray(noise(0)).convert(mode).save(tmp_path / "a.png")
    found = captioned(folder_of(tmp_path, [{"file_name": "a.png", "text": "a"}]), (6, 6))
    assert found.images.shape == (1, 3, 6, 6) and found.images.dtype == torch.float32


def test_everything_that_is_wrong_is_listed(tmp_path: Path) -> None:
    inside = tmp_path / "set"
    picture(inside / "good.png", noise(0))
    picture(tmp_path / "secret.png", noise(1))
    (inside / "broken.png").write_bytes((inside / "good.png").read_bytes()[:40])
    (inside / "text.png").write_text("not a picture")
    lines: list[object] = [
        {"file_name": "good.png", "text": "fine"},
        {"file_name": "../secret.png", "text": "outside"},
        {"file_name": str(tmp_path / "secret.png"), "text": "absolute"},
        {"file_name": "broken.png", "text": "cut off"},
        {"file_name": "text.png", "text": "no picture"},
        {"file_name": "none.png", "text": "missing"},
        {"file_name": "good.png", "text": 3},
        "{not json",
    ]
    with pytest.raises(DataError) as caught:
        captioned(folder_of(inside, lines), (6, 6))
    said = str(caught.value)
    assert "line 1:" not in said and all(f"line {n}:" in said for n in range(2, 9))
    assert "outside the folder" in said
    for k, words in ((6, "must be text"), (7, "line 1"), (5, "none.png.: cannot read it: No such file")):
        with pytest.raises(DataError, match=words):
            captioned(folder_of(inside, [lines[k]]), (6, 6))


def test_no_captions_and_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no captions in .*metadata\.jsonl"):
        captioned(tmp_path, (6, 6))
    with pytest.raises(DataError, match="no image"):
        captioned(folder_of(tmp_path, [""]), (6, 6))
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no captions"):
        captioned(tmp_path, (6, 6))


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", noise(0))
    folder_of(tmp_path, [{"file_name": "a.png", "text": "a"}])
    monkeypatch.setattr(module, "MOST_PIXELS", 36)
    assert len(captioned(tmp_path, (6, 6)).images) == 1
    monkeypatch.setattr(module, "MOST_PIXELS", 35)
    with pytest.raises(DataError, match="6 x 6 pixels"):
        captioned(tmp_path, (6, 6))


@pytest.mark.parametrize("line", ["3", "[]", '"a"', "null", "{}", '{"file_name": "a.png"}'])
def test_lines_that_are_not_records(line: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1"):
        captioned(folder_of(tmp_path, [line]), (6, 6))
